"""The file of checks: whole, and nobody else's."""

from __future__ import annotations

from stapsrv.scripts.history import History
from stapsrv.scripts.matrix import Cell, Result, Verdict
from stapsrv.supervisor.state.script_runs import ScriptRuns

HISTORY = History().with_results([Result(cell=Cell("/srv", "x.stp", "6.1"), verdict=Verdict.OK, at=1.0)])


def test_history_is_there_for_the_next_process(tmp_path):
    ScriptRuns(tmp_path / "new" / "runs.json").write(HISTORY)
    assert ScriptRuns(tmp_path / "new" / "runs.json").read() == HISTORY


def test_damaged_or_missing_file_is_an_empty_history(tmp_path):
    runs = ScriptRuns(tmp_path / "runs.json")
    assert runs.read() == History()
    for text in ("{", "[]", '{"version": 1, "cells": 7}', "[" * 100_000):
        (tmp_path / "runs.json").write_text(text)
        assert runs.read() == History()
