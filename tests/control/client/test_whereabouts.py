"""Notes of where supervisors run: hints that lead nobody astray."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from stapsrv.control.client.whereabouts import note_stat_path, noted_stat_path

USER = pwd.getpwuid(os.geteuid()).pw_name


def noted(directory: Path, config_file: Path | None = None) -> Path | None:
    return noted_stat_path(USER, config_file, {"SYSTEMTAP_DIR": str(directory)})


def test_each_global_file_has_its_own_note(tmp_path):
    note_stat_path(tmp_path / "new", None, Path("/run/a"))
    note_stat_path(tmp_path / "new", Path("/etc/x.conf"), Path("/run/b"))
    note_stat_path(tmp_path / "new", None, Path("/run/c"))
    assert noted(tmp_path / "new") == Path("/run/c")
    assert noted(tmp_path / "new", Path("/etc/x.conf")) == Path("/run/b")
    assert noted(tmp_path / "new", Path("/etc/y.conf")) is None


@pytest.mark.parametrize("text", ["", "[]", '{"": 1}', '{"": "relative"}', '{"": "/nul\\u0000"}', "{"])
def test_a_damaged_note_says_nothing(tmp_path, text):
    (tmp_path / "supervisors").write_text(text)
    assert noted(tmp_path) is None
    note_stat_path(tmp_path, None, Path("/run/a"))
    assert noted(tmp_path) == Path("/run/a")


def test_links_pipes_and_unknown_users_are_passed_over(tmp_path):
    (tmp_path / "elsewhere").write_text(json.dumps({"": "/run/a"}))
    (tmp_path / "supervisors").symlink_to("elsewhere")
    assert noted(tmp_path) is None
    (tmp_path / "supervisors").unlink()
    os.mkfifo(tmp_path / "supervisors")
    assert noted(tmp_path) is None
    assert noted_stat_path("no such user", None, {}) is None


def test_a_directory_that_cannot_be_written_costs_the_note(tmp_path):
    (tmp_path / "file").write_text("")
    note_stat_path(tmp_path / "file" / "below", None, Path("/run/a"))
