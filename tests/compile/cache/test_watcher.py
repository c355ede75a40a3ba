"""A change of an input path that is over is never missed, however fast it was."""

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
def _short_quiet(monkeypatch):
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
    *paths: WatchedPath, rescan_s: float = 900.0
) -> AsyncIterator[tuple[InputWatcher, LogLines]]:
    lines = LogLines()
    with anyio.fail_after(60), contextlib.closing(InputWatcher(log=lines.log, rescan_s=rescan_s)) as watcher:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.run)
            await watcher.wait_scanned(paths)
            yield watcher, lines
            tasks.cancel_scope.cancel()


def replace(tree: Path) -> None:
    tree.rename(tree.with_name("old"))
    shutil.copytree(tree.with_name("old"), tree, symlinks=True)


def swap_link(link: Path, target: str) -> None:
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
    "a link on the way back up": lambda tree: swap_link(tree.parents[1] / "hop", "new/side"),
    "way renamed": lambda tree: tree.parent.rename(tree.parents[1] / "off"),
    "gone": lambda tree: shutil.rmtree(tree),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_change_drops_the_fingerprint_at_once(tree, change):
    path = WatchedPath(str(tree))
    async with watching(path) as (watcher, _lines):
        before = watcher.fingerprint([path])
        assert before is not None
        assert watcher.fingerprint([path]) == before
        CHANGES[change](tree)
        assert watcher.fingerprint([path]) is None
        await watcher.wait_scanned([path])
        after = watcher.fingerprint([path])
        assert after not in {None, before}


async def test_directory_made_later_is_watched(tree):
    path = WatchedPath(str(tree))
    async with watching(path) as (watcher, _lines):
        (tree / "new" / "deep").mkdir(parents=True)
        await watcher.wait_scanned([path])
        before = watcher.fingerprint([path])
        (tree / "new" / "deep" / "file").touch()
        assert watcher.fingerprint([path]) != before


async def test_missing_path_that_appears_is_a_change(tmp_path):
    path = WatchedPath(str(tmp_path / "x" / "y"))
    async with watching(path) as (watcher, _lines):
        before = watcher.fingerprint([path])
        (tmp_path / "other").mkdir()
        assert watcher.fingerprint([path]) == before
        (tmp_path / "x" / "y").mkdir(parents=True)
        assert watcher.fingerprint([path]) is None


async def test_change_beside_a_path_does_not_count(tree):
    path, other = WatchedPath(str(tree / "a")), WatchedPath(str(tree / "link"))
    async with watching(path, other) as (watcher, _lines):
        before = watcher.fingerprint([path])
        (tree / "link" / "new").touch()
        assert watcher.fingerprint([path]) == before
        assert watcher.fingerprint([path, other]) is None


async def test_path_that_is_not_watched_has_no_fingerprint(tree):
    async with watching(WatchedPath(str(tree))) as (watcher, _lines):
        assert watcher.fingerprint([WatchedPath("/usr")]) is None


async def test_lost_events_drop_all_fingerprints(tree, monkeypatch):
    path = WatchedPath(str(tree))
    async with watching(path) as (watcher, lines):
        monkeypatch.setattr(inotify.Inotify, "read", lambda _self: [inotify.Event(-1, inotify.OVERFLOW, b"")])
        assert watcher.fingerprint([path]) is None
        monkeypatch.undo()
        await watcher.wait_scanned([path])
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
async def test_mount_drops_fingerprints_of_what_it_shows(tree, monkeypatch, point, counts):
    path = WatchedPath(str(tree))
    top = tree.parents[1]
    async with watching(path) as (watcher, _lines):
        before = watcher.fingerprint([path])
        with monkeypatch.context() as patched:
            mounted = frozenset({b"/run/user/1000", bytes(top / point)})
            patched.setattr(Mounts, "changed", lambda _self: mounted)
            assert (watcher.fingerprint([path]) is None) == counts
        await watcher.wait_scanned([path])
        assert watcher.fingerprint([path]) == before


async def test_mount_over_the_root_drops_all_fingerprints(tree, monkeypatch):
    path = WatchedPath(str(tree / "missing"))
    async with watching(path) as (watcher, _lines):
        monkeypatch.setattr(Mounts, "changed", lambda _self: frozenset({b"/"}))
        assert watcher.fingerprint([path]) is None


async def test_rescan_finds_a_change_without_an_event(tree, monkeypatch):
    path = WatchedPath(str(tree))
    monkeypatch.setattr(inotify.Inotify, "read", lambda _self: [])
    async with watching(path, rescan_s=0.05) as (watcher, lines):
        before = watcher.fingerprint([path])
        (tree / "new").touch()
        await lines.wait("cache.missed_change")
        await watcher.wait_scanned([path])
        assert watcher.fingerprint([path]) != before


@pytest.fixture
def hidden(tmp_path: Path) -> Iterator[Path]:
    """A directory that cannot be listed or watched, but passed through by those who know its names."""
    directory = tmp_path / "hidden"
    (directory / "v1").mkdir(parents=True)
    (directory / "current").symlink_to("v1")
    directory.chmod(0o311)
    yield directory
    directory.chmod(0o700)


@pytest.mark.parametrize("name", ["current", "missing", "."])
async def test_path_through_a_directory_of_mode_0311_cannot_be_watched(hidden, name):
    path = WatchedPath(str(hidden / name))
    async with watching(path) as (watcher, lines):
        assert watcher.fingerprint([path]) is None
        assert str(hidden) in str(watcher.fault([path]))
        assert lines.events() == ["cache.unwatched", "cache.watching"]


async def test_readable_directory_below_it_can_be_watched(hidden):
    path = WatchedPath(str(hidden / "v1"))
    async with watching(path) as (watcher, _):
        before = watcher.fingerprint([path])
        (hidden / "v1").rename(hidden / "v0")
        assert None is watcher.fingerprint([path]) is not before


async def test_failed_watch_is_logged_and_gives_no_fingerprint(tree, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inotify.Inotify, "watch", fail)
    path = WatchedPath(str(tree))
    async with watching(path) as (watcher, lines):
        assert watcher.fingerprint([path]) is None
        assert watcher.fault([path]) is not None
        assert lines.events() == ["cache.unwatched", "cache.watching"]
