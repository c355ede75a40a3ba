"""Files appear whole, with their final mode, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from stapsrv.system.atomic_file import create_file, replace_file, sync


@pytest.fixture(params=[0o022, 0o077], autouse=True)
def umask(request):
    """Modes are as wanted whatever the umask is."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_replaced_file_has_text_and_mode(path):
    replace_file(path, "old")
    assert (path.read_text(), mode(path)) == ("old", 0o600)
    replace_file(path, "new \N{SNOWMAN}", mode=0o644)
    assert (path.read_text(encoding="utf-8"), mode(path)) == ("new \N{SNOWMAN}", 0o644)
    assert list(path.parent.iterdir()) == [path]


def test_failed_replacement_leaves_the_old_file(path, monkeypatch):
    replace_file(path, "old")

    def fail(_path, _target):
        raise OSError(28, "full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="full"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_created_file_has_content_and_mode(path):
    create_file(path, b"\0", mode=0o644)
    assert (path.read_bytes(), mode(path)) == (b"\0", 0o644)


def test_existing_file_is_not_created(path):
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        create_file(path, b"new", mode=0o600)
    assert path.read_bytes() == b"old"


def test_nothing_is_left_of_a_file_that_could_not_be_written(path, monkeypatch):
    def fail(_fd):
        raise OSError(28, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        create_file(path, b"half", mode=0o600)
    assert list(path.parent.iterdir()) == []


def test_files_and_directories_are_synced(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    create_file(path, b"", mode=0o600)
    sync(path)
    sync(path.parent)
    assert synced == [path.stat().st_ino, path.stat().st_ino, path.parent.stat().st_ino]
