"""Locks that are removed with their directory, and are none of those that come after."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from stapsrv.system.lock_files import is_current, locked_unless_missing, remove_locked_directory


def lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def remove(directory: Path, *files: str) -> None:
    remove_locked_directory(directory, files, held="held", other="other", uid=os.geteuid())


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "user").mkdir()
    return tmp_path / "user"


def test_removed_lock_is_not_current_any_more(directory):
    fd = lock(directory / "held")
    assert is_current(fd, directory / "held")
    remove(directory)
    assert not is_current(fd, directory / "held")
    directory.mkdir()
    again = lock(directory / "held")
    assert not is_current(fd, directory / "held")
    os.close(fd)
    os.close(again)


def test_directory_goes_with_its_locks_and_the_named_files(directory):
    for name in ("held", "other", "socket"):
        (directory / name).touch()
    remove(directory, "socket")
    assert not directory.exists()
    remove(directory)


def test_directory_stays_while_another_holds_the_other_lock(directory):
    (directory / "held").touch()
    fd = lock(directory / "other")
    remove(directory)
    assert sorted(path.name for path in directory.iterdir()) == ["held", "other"]
    with (
        pytest.raises(BlockingIOError),
        locked_unless_missing(directory, "other", uid=os.geteuid()),
    ):
        pytest.fail("two hold it")
    os.close(fd)


def test_directory_with_further_files_stays(directory):
    (directory / "kept").touch()
    remove(directory)
    assert (directory / "kept").exists()


def test_nothing_is_removed_through_a_link_or_from_another_users_directory(directory):
    (directory / "held").touch()
    link = directory.with_name("link")
    link.symlink_to(directory)
    remove(link)
    remove_locked_directory(directory, held="held", other="other", uid=os.geteuid() + 1)
    assert (directory / "held").exists()
    assert link.is_symlink()


def test_missing_lock_and_missing_directory_are_nobodys(directory):
    for place in (directory, directory / "missing"):
        with locked_unless_missing(place, "held", uid=os.geteuid()):
            pass
