"""Files that others may have put there: nobody waits for them, and none leads elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stapsrv.system.trusted_files import open_appending, open_owned_directory, read_file


def append(path: Path, text: bytes) -> None:
    fd = open_appending(path, mode=0o640)
    os.write(fd, text)
    os.close(fd)


@pytest.fixture
def everything_is_anothers(monkeypatch):
    """Let this process be a user who made none of the files."""
    uid = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_file_is_read_with_its_owner_and_no_more_than_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    assert read_file(tmp_path / "file", max_bytes=9_000) == (os.geteuid(), b"x" * 9_000)


def test_pipe_link_directory_and_second_name_are_not_read(tmp_path):
    (tmp_path / "file").write_text("secret")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "link", "directory", "missing"):
        with pytest.raises(OSError, match=r"^\[Errno"):
            read_file(tmp_path / name, max_bytes=10)
    os.link(tmp_path / "file", tmp_path / "second")
    with pytest.raises(PermissionError):
        read_file(tmp_path / "second", max_bytes=10)


def test_file_is_made_and_appended_to_through_own_links(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(tmp_path / "file")
    append(tmp_path / "one", b"a")
    append(tmp_path / "one", b"b")
    assert (tmp_path / "file").read_bytes() == b"ab"
    append(Path("/dev/null"), b"c")


def test_circular_links_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        open_appending(tmp_path / "a", mode=0o640)


def test_link_of_another_user_is_not_appended_through(tmp_path, everything_is_anothers):
    if (tmp_path / "..").stat().st_uid == 0:
        pytest.skip("root's links are followed")
    (tmp_path / "file").write_text("private")
    (tmp_path / "log").symlink_to("file")
    with pytest.raises(PermissionError):
        open_appending(tmp_path / "log", mode=0o640)
    assert (tmp_path / "file").read_text() == "private"


def test_pipe_holds_nobody_up_and_another_users_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"):
        open_appending(tmp_path / "pipe", mode=0o640)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    append(tmp_path / "pipe", b"x")
    uid = os.geteuid() + 1
    if uid != 1:
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        with pytest.raises(PermissionError):
            open_appending(tmp_path / "pipe", mode=0o640)
    os.close(reader)


def test_directory_of_another_user_or_behind_a_link_is_not_opened(tmp_path):
    os.close(open_owned_directory(tmp_path, os.geteuid()))
    with pytest.raises(PermissionError):
        open_owned_directory(tmp_path, os.geteuid() + 1)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        open_owned_directory(tmp_path / "link", os.geteuid())
