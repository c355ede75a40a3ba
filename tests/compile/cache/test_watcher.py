"""Places under watch: a change that is over is never missed, whoever makes it and however fast."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from kit.service import LogLines

from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.watcher import InputWatcher
from stapsrv.system import inotify
from stapsrv.system.mount_table import Mounts

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr("stapsrv.compile.cache.watcher._QUIET_S", 0.01)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "way" / "tree"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_text("text")
    (tmp_path / "far").mkdir()
    (root / "link").symlink_to(tmp_path / "far")
    for name in ("old", "new"):
        (tmp_path / name / "side" / "deep").mkdir(parents=True)
    (tmp_path / "hop").symlink_to("old/side")
    (root / "far").symlink_to("../../hop/../side/deep")
    return root


@contextlib.asynccontextmanager
async def watching(
    *places: WatchedPath, check_s: float = 900.0
) -> AsyncIterator[tuple[InputWatcher, LogLines]]:
    lines = LogLines()
    with anyio.fail_after(30), contextlib.closing(InputWatcher(log=lines.log, check_s=check_s)) as grounds:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(grounds.run)
            await grounds.wait_scanned(places)
            yield grounds, lines
            tasks.cancel_scope.cancel()


def replace(tree: Path) -> None:
    tree.rename(tree.with_name("old"))
    shutil.copytree(tree.with_name("old"), tree, symlinks=True)


def lead_elsewhere(link: Path, target: str) -> None:
    """Swap a link for another, as releases are."""
    link.with_name("link.new").symlink_to(target)
    link.with_name("link.new").rename(link)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda tree: (tree / "a" / "b" / "file").write_text("TEXT"),
    "made": lambda tree: (tree / "a" / "b" / "new").touch(),
    "directory made": lambda tree: (tree / "a" / "c").mkdir(),
    "removed": lambda tree: (tree / "a" / "b" / "file").unlink(),
    "behind a link": lambda tree: (tree.parents[1] / "far" / "new").touch(),
    "replaced": replace,
    "a link on the way back up": lambda tree: lead_elsewhere(tree.parents[1] / "hop", "new/side"),
    "way renamed": lambda tree: tree.parent.rename(tree.parents[1] / "off"),
    "gone": lambda tree: shutil.rmtree(tree),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_is_known_at_once(tree, change):
    place = WatchedPath(str(tree))
    async with watching(place) as (grounds, _lines):
        before = grounds.fingerprint([place])
        assert before is not None
        assert grounds.fingerprint([place]) == before
        CHANGES[change](tree)
        assert grounds.fingerprint([place]) is None
        await grounds.wait_scanned([place])
        after = grounds.fingerprint([place])
        assert after not in {None, before}


async def test_what_comes_later_is_watched_as_well(tree):
    place = WatchedPath(str(tree))
    async with watching(place) as (grounds, _lines):
        (tree / "new" / "deep").mkdir(parents=True)
        await grounds.wait_scanned([place])
        before = grounds.fingerprint([place])
        (tree / "new" / "deep" / "file").touch()
        assert grounds.fingerprint([place]) != before


async def test_a_missing_place_may_come(tmp_path):
    place = WatchedPath(str(tmp_path / "x" / "y"))
    async with watching(place) as (grounds, _lines):
        before = grounds.fingerprint([place])
        (tmp_path / "other").mkdir()
        assert grounds.fingerprint([place]) == before
        (tmp_path / "x" / "y").mkdir(parents=True)
        assert grounds.fingerprint([place]) is None


async def test_neighbours_do_not_count(tree):
    place, other = WatchedPath(str(tree / "a")), WatchedPath(str(tree / "link"))
    async with watching(place, other) as (grounds, _lines):
        before = grounds.fingerprint([place])
        (tree / "link" / "new").touch()
        assert grounds.fingerprint([place]) == before
        assert grounds.fingerprint([place, other]) is None


async def test_an_unknown_place_is_not_known(tree):
    async with watching(WatchedPath(str(tree))) as (grounds, _lines):
        assert grounds.fingerprint([WatchedPath("/usr")]) is None


async def test_a_queue_that_ran_over_makes_everything_unknown(tree, monkeypatch):
    place = WatchedPath(str(tree))
    async with watching(place) as (grounds, lines):
        monkeypatch.setattr(inotify.Inotify, "read", lambda _self: [inotify.Event(-1, inotify.OVERFLOW, b"")])
        assert grounds.fingerprint([place]) is None
        monkeypatch.undo()
        await grounds.wait_scanned([place])
        assert "cache.overflow" in lines.events()


@pytest.mark.parametrize(
    ("point", "counts"),
    [
        ("way/tree", True),
        ("way", True),
        ("way/tree/a/b", True),
        ("way/tree/a/b/file", True),
        ("far", True),
        ("", True),
        ("way/other", False),
        ("way/tree-2", False),
        ("far-off/x", False),
    ],
)
async def test_a_mount_makes_what_it_shows_unknown(tree, monkeypatch, point, counts):
    place = WatchedPath(str(tree))
    top = tree.parents[1]
    async with watching(place) as (grounds, _lines):
        before = grounds.fingerprint([place])
        with monkeypatch.context() as patched:
            mounted = frozenset({b"/run/user/1000", bytes(top / point)})
            patched.setattr(Mounts, "changed", lambda _self: mounted)
            assert (grounds.fingerprint([place]) is None) == counts
        await grounds.wait_scanned([place])
        assert grounds.fingerprint([place]) == before


async def test_a_mount_over_the_root_counts_for_everything(tree, monkeypatch):
    place = WatchedPath(str(tree / "missing"))
    async with watching(place) as (grounds, _lines):
        monkeypatch.setattr(Mounts, "changed", lambda _self: frozenset({b"/"}))
        assert grounds.fingerprint([place]) is None


async def test_a_change_that_nobody_tells_of_is_found_in_time(tree, monkeypatch):
    place = WatchedPath(str(tree))
    monkeypatch.setattr(inotify.Inotify, "read", lambda _self: [])
    async with watching(place, check_s=0.05) as (grounds, lines):
        before = grounds.fingerprint([place])
        (tree / "new").touch()
        await lines.wait("cache.unnoticed")
        await grounds.wait_scanned([place])
        assert grounds.fingerprint([place]) != before


@pytest.fixture
def hidden(tmp_path: Path) -> Iterator[Path]:
    """A directory whose names nobody is told, and that those who know them can go through."""
    directory = tmp_path / "hidden"
    (directory / "v1").mkdir(parents=True)
    (directory / "current").symlink_to("v1")
    directory.chmod(0o311)
    yield directory
    directory.chmod(0o700)


@pytest.mark.parametrize("name", ["current", "missing", "."])
async def test_what_could_change_unheard_is_not_known(hidden, name):
    place = WatchedPath(str(hidden / name))
    async with watching(place) as (grounds, lines):
        assert grounds.fingerprint([place]) is None
        assert str(hidden) in str(grounds.fault([place]))
        assert lines.events() == ["cache.unwatched", "cache.watching"]


async def test_a_directory_below_tells_of_itself(hidden):
    place = WatchedPath(str(hidden / "v1"))
    async with watching(place) as (grounds, _):
        before = grounds.fingerprint([place])
        (hidden / "v1").rename(hidden / "v0")
        assert None is grounds.fingerprint([place]) is not before


async def test_what_cannot_be_watched_is_said_and_not_known(tree, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inotify.Inotify, "watch", fail)
    place = WatchedPath(str(tree))
    async with watching(place) as (grounds, lines):
        assert grounds.fingerprint([place]) is None
        assert grounds.fault([place]) is not None
        assert lines.events() == ["cache.unwatched", "cache.watching"]
