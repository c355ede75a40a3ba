"""The results so far: the last of each script for each release, and those that came before it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from stapsrv.scripts.matrix import Cell, Inputs, Result, Verdict, release_order, working_release

MAX_CELLS = 5_000
MAX_CHANGES = 12
"""Of one cell: the oldest are forgotten first."""
_VERSION = 1

Changes = tuple[Result, ...]


@attrs.frozen
class History:
    """The results of each cell that differed from the one before, the oldest first."""

    cells: Mapping[Cell, Changes] = attrs.field(factory=dict)

    @property
    def last(self) -> dict[Cell, Result]:
        """The last result of each cell."""
        return {cell: changes[-1] for cell, changes in self.cells.items()}

    def with_results(self, results: Iterable[Result]) -> History:
        """Return a history with further results; what was checked longest ago goes beyond the bound."""
        cells = dict(self.cells)
        for result in results:
            if result.verdict in {Verdict.UNTRIED, Verdict.LEFT_OUT}:
                # It says nothing of the kernel, and must not hide what was known of it.
                continue
            changes = cells.pop(result.cell, ())
            cells[result.cell] = _added(changes, result)
        return History(dict(list(cells.items())[-MAX_CELLS:]))

    def of_script(self, name: str) -> dict[Cell, Changes]:
        """Return the cells of the scripts of a name, which may lack the directory or the suffix."""
        return {cell: changes for cell, changes in self.cells.items() if _is_named(cell.script, name)}


def _added(changes: Changes, result: Result) -> Changes:
    if changes and (changes[-1].verdict, changes[-1].message) == (result.verdict, result.message):
        # The first of equal results says since when, with the inputs that are known last.
        return (*changes[:-1], attrs.evolve(changes[-1], inputs=result.inputs, seconds=result.seconds))
    return (*changes, result)[-MAX_CHANGES:]


def _is_named(script: str, name: str) -> bool:
    wanted = name if name.endswith(".stp") else f"{name}.stp"
    return script == wanted or script.endswith(f"/{wanted}")


def history_lines(cells: Mapping[Cell, Changes]) -> list[str]:
    """Return what there is to tell of scripts: since which kernel or change each fails, then all changes."""
    lines = []
    last = {cell: changes[-1] for cell, changes in cells.items()}
    for script in dict.fromkeys(cell[:2] for cell in cells):
        own = sorted(
            (cell for cell in cells if cell[:2] == script), key=lambda each: release_order(each.release)
        )
        lines.append(f"{script[1]} ({script[0]})")
        for cell in own:
            lines.append(f"  {cell.release}: {_since(cell, cells[cell], last)}")
            lines += [f"    {_moment(each.at)}  {_said(each)}" for each in cells[cell]]
    return lines


def _since(cell: Cell, changes: Changes, last: Mapping[Cell, Result]) -> str:
    now = changes[-1]
    words = f"{now.verdict} since {_moment(now.at)}"
    if now.verdict is not Verdict.FAILS:
        return words
    if len(changes) > 1:
        before = changes[-2]
        return f"{words}, when {now.inputs.changed_since(before.inputs)}; {before.verdict} before"
    works = working_release(cell, last)
    return f"{words}, the first check; works on {works}" if works is not None else f"{words}, the first check"


def _said(result: Result) -> str:
    return f"{result.verdict}: {result.message}" if result.message else str(result.verdict)


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def encode_history(history: History) -> dict[str, object]:
    """Return a history as JSON's types."""
    return {
        "version": _VERSION,
        "cells": [
            {"cell": list(cell), "changes": [encode_result(each) for each in changes]}
            for cell, changes in history.cells.items()
        ],
    }


def decode_history(value: object) -> History:
    """Return the history that JSON's types hold; what cannot be read in it is left out."""
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        return History()
    cells: dict[Cell, Changes] = {}
    rows = value.get("cells")
    for row in rows if isinstance(rows, list) else ():
        try:
            cell = Cell(*map(str, row["cell"]))
            changes = tuple(decode_result(cell, each) for each in row["changes"])
        except (KeyError, TypeError, ValueError):
            continue
        if changes:
            cells[cell] = changes[-MAX_CHANGES:]
    return History(cells)


def encode_result(result: Result) -> dict[str, object]:
    """Return what a history keeps of a result, as JSON's types; its cell is kept beside it."""
    return {
        "verdict": str(result.verdict),
        "message": result.message,
        "seconds": round(result.seconds, 3),
        "at": round(result.at, 3),
        "inputs": list(attrs.astuple(result.inputs)),
    }


def decode_result(cell: Cell, value: Mapping[str, Any]) -> Result:
    """Return the result that JSON's types hold; a KeyError, TypeError or ValueError if they do not."""
    return Result(
        cell=cell,
        verdict=Verdict(value["verdict"]),
        message=str(value["message"]),
        seconds=float(value["seconds"]),
        at=float(value["at"]),
        inputs=Inputs(*map(str, value["inputs"])),
    )
