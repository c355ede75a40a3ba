"""Unix sockets as files: complete when they appear, gone with their listener, at any path."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from stapsrv.system.unix_socket import address_of, open_socket_file


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with open_socket_file(path, group="no-such-group", backlog=1) as listener:
        yield listener


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client, address_of(path) as address:
        client.connect(address)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_file_accepts_with_its_mode_whatever_the_umask(path):
    umask = os.umask(0o077)
    try:
        with listening(path) as listener:
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
            assert not listener.getblocking()
            assert list(path.parent.iterdir()) == [path]
            connect(path)
    finally:
        os.umask(umask)
    assert list(path.parent.iterdir()) == []


def test_stale_files_are_replaced(path):
    for stale in (path, path.with_name(".socket.new")):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(stale))
    with listening(path):
        connect(path)


def test_file_of_another_listener_is_not_removed(path):
    with listening(path):
        path.unlink()
        path.write_text("another")
    assert path.read_text() == "another"


def test_path_longer_than_an_address_works(tmp_path):
    path = tmp_path / ("d" * 120) / "socket"
    path.parent.mkdir()
    with listening(path):
        connect(path)
    assert list(path.parent.iterdir()) == []


def test_directory_in_the_way_is_an_error_that_leaves_nothing(path):
    path.mkdir()
    with pytest.raises(IsADirectoryError), listening(path):
        pytest.fail("it was made")
    assert list(path.parent.iterdir()) == [path]
