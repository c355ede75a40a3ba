"""A fingerprint differs after a change, and only then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stapsrv.compile.cache.fingerprint import TooLargeError, WatchedPath, fingerprint, stamp


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_text("text")
    (root / "top").write_text("text")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far").write_text("text")
    (root / "link").symlink_to("../elsewhere")
    (root / "file-link").symlink_to(tmp_path / "elsewhere" / "far")
    return root


def scan(path: Path, *, recursive: bool = True) -> bytes:
    return fingerprint(WatchedPath(str(path), recursive), lambda *_: None)


def write_back_dated(path: Path) -> None:
    status = path.stat()
    path.write_text("TEXT")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda tree: (tree / "a" / "b" / "file").write_text("other"),
    "written and dated back": lambda tree: write_back_dated(tree / "a" / "b" / "file"),
    "made": lambda tree: (tree / "a" / "b" / "new").touch(),
    "removed": lambda tree: (tree / "top").unlink(),
    "renamed": lambda tree: (tree / "top").rename(tree / "top2"),
    "directory made": lambda tree: (tree / "a" / "c").mkdir(),
    "mode": lambda tree: (tree / "top").chmod(0o600),
    "replaced by the same": lambda tree: ((tree / "n").write_text("text"), (tree / "n").rename(tree / "top")),
    "behind a link": lambda tree: (tree.parent / "elsewhere" / "far").write_text("other"),
    "new behind a link": lambda tree: (tree.parent / "elsewhere" / "more").touch(),
    "link points elsewhere": lambda tree: ((tree / "link").unlink(), (tree / "link").symlink_to("a")),
    "link is broken": lambda tree: (tree.parent / "elsewhere" / "far").unlink(),
    "gone": lambda tree: tree.rename(tree.parent / "gone"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_gives_another_fingerprint(tree, change):
    before = scan(tree)
    assert scan(tree) == before
    CHANGES[change](tree)
    assert scan(tree) != before


def test_not_recursive_counts_the_directory_alone(tree):
    before = scan(tree, recursive=False)
    (tree / "a" / "b" / "file").write_text("other")
    assert scan(tree, recursive=False) == before
    (tree / "top").write_text("other")
    assert scan(tree, recursive=False) != before


def test_file_and_missing_path_have_fingerprints(tree):
    assert scan(tree / "top") != scan(tree / "missing")
    before = scan(tree / "missing")
    (tree / "missing").touch()
    assert scan(tree / "missing") != before


def test_links_in_a_circle_come_to_an_end(tree):
    (tree / "a" / "up").symlink_to("..")
    (tree / "self").symlink_to("self")
    assert scan(tree) == scan(tree)


def test_all_that_is_scanned_is_watched(tree):
    watched = []
    fingerprint(
        WatchedPath(str(tree)), lambda directory, name: watched.append((os.fsdecode(directory), name))
    )
    parent = str(tree.parent)
    assert {(str(tree), None), (f"{tree}/a/b", None), (f"{parent}/elsewhere", None)} <= set(watched)
    assert {("/", tree.parts[1].encode()), (parent, b"tree"), (f"{parent}/elsewhere", b"far")} <= set(watched)


def test_too_many_entries_are_refused(tree, monkeypatch):
    monkeypatch.setattr("stapsrv.compile.cache.fingerprint._MAX_ENTRIES", 3)
    with pytest.raises(TooLargeError, match="more than 3 entries"):
        scan(tree)


def test_stamp_differs_after_a_change(tree):
    before = stamp(tree / "top")
    assert stamp(str(tree / "top")) == before != b""
    write_back_dated(tree / "top")
    assert stamp(tree / "top") != before
    assert stamp(tree / "missing") == b""
