"""Finding the control sockets below STAT_PATH."""

from __future__ import annotations

import os
import socket

import pytest

from stapsrv.control.client import find_sockets


def test_sockets_are_found_by_user(tmp_path):
    for user in ("zoe", "amy"):
        (tmp_path / user).mkdir()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / user / "control.sock"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "control.sock").write_text("")
    (tmp_path / "4194305.stat").write_text("")
    assert find_sockets(tmp_path) == [tmp_path / "amy" / "control.sock", tmp_path / "zoe" / "control.sock"]
    assert find_sockets(tmp_path / "missing") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_directories_of_others_are_left_out(tmp_path):
    (tmp_path / "secret").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "secret" / "control.sock"))
    (tmp_path / "secret").chmod(0)
    try:
        assert find_sockets(tmp_path) == []
    finally:
        (tmp_path / "secret").chmod(0o700)
