"""What is heard of a database directory, and what is not."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.service import LogLines

from stapsrv.identity import watch as module
from stapsrv.identity.nss import Database
from stapsrv.identity.watch import DatabaseWatch, watching


@pytest.fixture
def watch() -> Iterator[DatabaseWatch]:
    with contextlib.closing(DatabaseWatch()) as watch:
        yield watch


@pytest.fixture
def directories(watch: DatabaseWatch, tmp_path: Path) -> tuple[Path, Path]:
    directories = tmp_path / "a", tmp_path / "b"
    for directory in directories:
        directory.mkdir()
        (directory / "cert9.db").write_bytes(b"1")
        watch.arm(directory)
    return directories


def test_changes_are_heard_once_and_reading_is_none(watch, directories):
    first, second = directories
    (first / "cert9.db").read_bytes()
    with (second / "cert9.db").open("r+b"):
        assert watch.heard() == set()
    (first / "stap.cert").write_bytes(b"of no database")
    (first / ".new-key4.db").mkdir()
    assert watch.heard() == set()
    (first / "cert9.db").write_bytes(b"2")
    assert (watch.heard(), watch.heard()) == ({first}, set())
    (second / "new").write_bytes(b"")
    (second / "new").rename(second / "cert9.db")
    (first / "cert9.db").unlink()
    assert watch.heard() == {first, second}


def test_directory_that_took_the_place_is_heard_of_when_armed(watch, directories, tmp_path):
    first, second = directories
    first.rename(tmp_path / "old")
    second.rename(first)
    assert first in watch.heard()
    watch.arm(first)
    (first / "cert9.db").write_bytes(b"2")
    # The other one has not been looked at since.
    assert watch.heard() == {first, second}
    (tmp_path / "old" / "cert9.db").write_bytes(b"2")
    assert watch.heard() == set()


def test_links_on_the_way_are_heard_of(watch, directories, tmp_path):
    """A directory that is a link, and files that are, by way of a link that is swapped, as some tools do."""
    first, second = directories
    current = tmp_path / "current"
    current.symlink_to(first.name)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "..data").symlink_to(first)
    (inside / "cert9.db").symlink_to("..data/cert9.db")
    for directory in (current, inside):
        watch.arm(directory)
    for link, directory in ((current, current), (inside / "..data", inside)):
        (new := link.with_name("new")).symlink_to(second)
        new.rename(link)
        assert watch.heard() == {directory}
    (tmp_path / "other").mkdir()
    assert watch.heard() == set()
    # What they lead to now is heard of once they are looked at.
    for directory in (current, inside):
        watch.arm(directory)
    (second / "cert9.db").write_bytes(b"3")
    assert watch.heard() == {second, current, inside}


def test_when_too_much_happened_all_of_them_may_have_changed(watch, directories, monkeypatch):
    overflow = module.inotify.Event(-1, module.inotify.OVERFLOW, b"")
    monkeypatch.setattr(module.inotify.Inotify, "read", lambda _self: [overflow])
    assert watch.heard() == set(directories)


def test_directory_that_is_not_there_cannot_be_armed(watch, tmp_path):
    with pytest.raises(FileNotFoundError):
        watch.arm(tmp_path / "none")


def test_host_that_lets_nothing_be_watched(monkeypatch):
    def fail(_self):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module.inotify.Inotify, "__init__", fail)
    lines = LogLines()
    with watching(lines.log) as watch, watching(None) as another:
        assert (watch, another) == (None, None)
    assert lines.reasons("identity.unheard") == ["Too many open files"]


@pytest.mark.anyio
async def test_reading_a_database_by_nss_is_no_change(watch, pristine_identity, tmp_path):
    """Else each look at one would be followed by the next."""
    database = shutil.copytree(pristine_identity, tmp_path / "database")
    watch.arm(database)
    before = Database(database).fingerprint()
    assert await Database(database).identities("stap-server")
    assert (watch.heard(), Database(database).fingerprint()) == (set(), before)
