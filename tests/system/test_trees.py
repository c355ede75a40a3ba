"""Trees that others shape: deep, wide, sealed, with links and FIFOs, and changed during the walk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

import pytest
from kit.trees import DEPTH, make_deep

from stapsrv.system import trees


def walk(top: Path, *, max_depth: int = DEPTH) -> list[str]:
    with trees.open_directory(top) as fd, contextlib.closing(trees.walk(fd, max_depth=max_depth)) as entries:
        return [entry.path for entry in entries]


@pytest.fixture(autouse=True)
def descriptors():
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def test_walk_yields_every_entry_and_follows_no_link(tmp_path):
    top = tmp_path / "top"
    for directory in ("a/b/c", "a/d", "e"):
        (top / directory).mkdir(parents=True)
    (top / "a" / "b" / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (top / "e" / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(top / "fifo")
    wanted = ["a", "a/b", "a/b/c", "a/b/file", "a/d", "e", "e/link", "fifo"]
    assert sorted(walk(top)) == wanted


def test_deep_tree_is_walked_and_removed(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    make_deep(top)
    assert len(walk(top)) == DEPTH + 1
    assert trees.remove(top)
    assert list(tmp_path.iterdir()) == []


def test_walk_takes_few_descriptors(tmp_path):
    make_deep(tmp_path, 100)
    before = len(os.listdir("/proc/self/fd"))
    with trees.open_directory(tmp_path) as fd, contextlib.closing(trees.walk(fd, max_depth=100)) as entries:
        assert max(len(os.listdir("/proc/self/fd")) for _ in entries) <= before + 4
    trees.remove(tmp_path / ("d" * 100))


def test_walk_ends_below_the_depth(tmp_path):
    (tmp_path / "1" / "2" / "3").mkdir(parents=True)
    assert len(walk(tmp_path, max_depth=3)) == 3
    with pytest.raises(OSError, match="nested more than 2 deep") as caught:
        walk(tmp_path, max_depth=2)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_walk_raises_where_it_may_not_read(tmp_path):
    (tmp_path / "sealed").mkdir(mode=0)
    with pytest.raises(PermissionError):
        walk(tmp_path)


def test_walk_passes_over_what_is_removed_meanwhile(tmp_path):
    for name in ("a", "b/c", "d"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    with trees.open_directory(tmp_path) as fd, contextlib.closing(trees.walk(fd, max_depth=9)) as entries:
        paths = [next(entries).path for _ in range(3)]
        directory, left = next(entries).above.rstrip("/"), set("abd")
        trees.remove(tmp_path / directory)
        trees.remove(tmp_path / min(left - {directory}))
        left = {path for path in left if (tmp_path / path).exists()}
        assert left <= {path.split("/")[0] for path in [entry.path for entry in entries]}
    assert sorted(paths) == ["a", "b", "d"]


def test_walk_passes_over_a_directory_that_is_removed_before_it_is_listed(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").touch()
    scandir = os.scandir

    def remove_first(directory):
        if os.readlink(f"/proc/self/fd/{directory}") == f"{tmp_path}/a":
            (tmp_path / "a").rmdir()
        return scandir(directory)

    monkeypatch.setattr(os, "scandir", remove_first)
    assert sorted(walk(tmp_path)) == ["a", "b"]
    assert not (tmp_path / "a").exists()


def test_walk_raises_when_it_was_led_away(tmp_path):
    """Otherwise it would go on in the directory that the one it is in was moved to."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    with trees.open_directory(tmp_path) as fd, contextlib.closing(trees.walk(fd, max_depth=9)) as entries:
        assert [next(entries).name for _ in range(3)] == ["a", "b", "file"]
        (tmp_path / "a" / "b").rename(tmp_path / "b")
        with pytest.raises(OSError, match="moved") as caught:
            next(entries)
    assert caught.value.errno == errno.ESTALE


def test_open_directory_follows_no_link(tmp_path):
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    with trees.open_directory(tmp_path, Path("real/below")):
        pass
    for path, below in ((tmp_path / "link", Path()), (tmp_path, Path("link/below"))):
        with pytest.raises(NotADirectoryError), trees.open_directory(path, below):
            pass


def test_only_regular_files_within_the_bound_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    with trees.open_directory(tmp_path) as fd:
        assert trees.read_file(fd, "file", max_bytes=5) == b"12345"
        for name, error in (("file", errno.EFBIG), ("link", errno.ELOOP), ("fifo", errno.EINVAL)):
            with pytest.raises(OSError, match=re.escape(os.strerror(error)) + "|it is") as caught:
                trees.read_file(fd, name, max_bytes=4)
            assert caught.value.errno == error


def test_sealed_trees_are_removed_and_links_are_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o500)
    top = tmp_path / "top"
    (top / "sealed" / "deeper" / "deepest").mkdir(parents=True)
    (top / "sealed" / "deeper" / "file").touch()
    (top / "link").symlink_to(precious)
    for path in ("sealed/deeper/deepest", "sealed/deeper", "sealed", "."):
        (top / path).chmod(0)
    assert trees.remove(top)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert precious.stat().st_mode & 0o777 == 0o500


def test_link_or_file_is_removed_itself_and_what_is_gone_is_gone(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "file").touch()
    assert all(trees.remove(tmp_path / name) for name in ("link", "file", "missing", "missing/below"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_what_cannot_be_removed_stays_and_the_rest_goes(tmp_path, monkeypatch):
    for name in ("a/1", "b/stuck", "c/2"):
        (tmp_path / "top" / name).mkdir(parents=True)
    rename, refused = os.rename, OSError(errno.EIO, "broken disk")

    def refuse(name, *arguments, **options):
        if name == "stuck":
            raise refused
        rename(name, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        assert not trees.remove(tmp_path / "top")
    assert [path.name for path in (tmp_path / "top").iterdir()] == ["b"]
    assert trees.remove(tmp_path / "top")
