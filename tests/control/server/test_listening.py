"""The control socket as a file."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from stapsrv.control.server.server import open_control_socket
from stapsrv.errors import ConfigError
from stapsrv.system.unix_socket import address_of


def connect(path) -> None:
    with socket.socket(socket.AF_UNIX) as client, address_of(path) as address:
        client.connect(address)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "control.sock"


def test_file_has_its_mode_and_accepts(path):
    umask = os.umask(0o077)
    try:
        with open_control_socket(path):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
            assert path.lstat().st_uid == os.geteuid()
            assert list(path.parent.iterdir()) == [path]
            connect(path)
    finally:
        os.umask(umask)


def test_file_goes_with_the_listener(path):
    with open_control_socket(path):
        pass
    assert list(path.parent.iterdir()) == []


def test_stale_files_do_not_stand_in_the_way(path):
    for stale in (path, path.with_name(".control.sock.new")):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(stale))
    with open_control_socket(path):
        connect(path)


def test_a_file_of_somebody_else_is_left_alone(path):
    with open_control_socket(path):
        path.unlink()
        path.write_text("another")
    assert path.read_text() == "another"


def test_a_file_that_is_gone_is_no_error(path):
    with open_control_socket(path):
        path.unlink()


def test_long_paths_work(tmp_path):
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    with open_control_socket(directory / "control.sock"):
        connect(directory / "control.sock")
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere/control.sock", f"{'n' * 120}/control.sock"])
def test_missing_directory_is_one_clear_line(tmp_path, name):
    with pytest.raises(ConfigError) as caught, open_control_socket(tmp_path / name):
        pytest.fail("it was made")
    assert str(caught.value) == (
        f"control socket {tmp_path / name}: cannot be made: No such file or directory;"
        " let the server's user write to its directory, or set STAT_PATH to another one"
    )


def test_directory_of_that_name_is_one_clear_line(path):
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be made: Is a directory"), open_control_socket(path):
        pytest.fail("it was made")
    assert list(path.parent.iterdir()) == [path]


def test_failure_within_the_block_takes_the_file_away(path):
    with pytest.raises(ZeroDivisionError), open_control_socket(path):
        raise ZeroDivisionError
    assert not path.exists()
