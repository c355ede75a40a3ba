"""Changes are reported for the keys that they concern, whether what is watched exists yet or not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from stapsrv.system import inotify
from stapsrv.system.directory_watcher import DirectoryWatcher

FILES = ("a.db", "b.db")


def is_quiet(watcher: DirectoryWatcher) -> bool:
    """Whether the queue is empty: a change is in it when the call that made it returns."""
    return not select.select([watcher.descriptor], [], [], 0)[0]


@pytest.mark.anyio
class TestDirectories:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """A directory with one in it, which has a file."""
        place = tmp_path / "place"
        (place / "inner").mkdir(parents=True)
        (place / "inner" / "file").touch()
        return place

    @contextlib.contextmanager
    def watched(self, directory: Path) -> Iterator[DirectoryWatcher[str]]:
        with contextlib.closing(DirectoryWatcher[str]()) as watcher:
            watcher.watch_directories("it", [directory])
            yield watcher

    async def wait_changed(self, watcher: DirectoryWatcher[str]) -> None:
        with anyio.fail_after(60):
            assert await watcher.wait_changed() == {"it"}

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda place: (place / "new").mkdir(), id="directory made"),
            pytest.param(lambda place: (place / "new").touch(), id="file made"),
            pytest.param(lambda place: (place / "inner" / "file").write_text("x"), id="file written"),
            pytest.param(lambda place: (place / "inner" / "file").chmod(0o600), id="mode changed"),
            pytest.param(lambda place: (place / "inner" / "file").unlink(), id="file removed"),
            pytest.param(lambda place: (place / "inner").rename(place / "other"), id="directory renamed"),
            pytest.param(
                lambda place: (place / "inner").rename(place.parent / "gone"), id="directory moved away"
            ),
            pytest.param(lambda place: place.rename(place.parent / "elsewhere"), id="moved away itself"),
        ],
    )
    async def test_change_wakes_the_waiting_task_once(self, place, change):
        with self.watched(place) as watcher:
            woken = anyio.Event()

            async def wait() -> None:
                await self.wait_changed(watcher)
                woken.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                assert not woken.is_set()
                change(place)
            assert is_quiet(watcher)

    async def test_reading_is_no_change(self, place):
        with self.watched(place) as watcher:
            (place / "inner" / "file").read_text()
            list(place.iterdir())
            watcher.watch_directories("it", [place])
            assert is_quiet(watcher)

    async def test_directory_made_step_by_step_is_found(self, tmp_path):
        wanted = tmp_path / "a" / "b" / "c"
        with self.watched(wanted) as watcher:
            for step in (tmp_path / "a", tmp_path / "a" / "b", wanted, wanted / "key"):
                step.mkdir()
                await self.wait_changed(watcher)
                watcher.watch_directories("it", [wanted])
            (wanted / "key" / "file").touch()
            await self.wait_changed(watcher)
            # The parents were watched only until the directory was there.
            assert watcher.changed() == set()
            (tmp_path / "beside").touch()
            assert is_quiet(watcher)

    async def test_file_in_place_of_the_directory_can_make_way(self, tmp_path):
        (tmp_path / "a").touch()
        with self.watched(tmp_path / "a") as watcher:
            (tmp_path / "a").unlink()
            await self.wait_changed(watcher)

    async def test_host_without_free_queues_is_an_error(self, monkeypatch):
        class Refusing:
            def inotify_init1(self, _flags):
                ctypes.set_errno(errno.EMFILE)
                return -1

        monkeypatch.setattr(inotify, "_libc", Refusing())
        with pytest.raises(OSError, match="Too many open files"):
            DirectoryWatcher()


class TestFiles:
    @pytest.fixture
    def watcher(self) -> Iterator[DirectoryWatcher[Path]]:
        with contextlib.closing(DirectoryWatcher[Path](inotify.WRITE)) as watcher:
            yield watcher

    @pytest.fixture
    def directories(self, watcher: DirectoryWatcher[Path], tmp_path: Path) -> tuple[Path, Path]:
        directories = tmp_path / "a", tmp_path / "b"
        for directory in directories:
            directory.mkdir()
            (directory / "a.db").write_bytes(b"1")
            watcher.watch_files(directory, directory, FILES)
        return directories

    def test_changes_are_reported_once_and_reading_is_none(self, watcher, directories):
        first, second = directories
        (first / "a.db").read_bytes()
        with (second / "a.db").open("r+b"):
            assert watcher.changed() == set()
        (first / "other").write_bytes(b"none of the files")
        (first / ".new-b.db").mkdir()
        assert watcher.changed() == set()
        (first / "a.db").write_bytes(b"2")
        assert (watcher.changed(), watcher.changed()) == ({first}, set())
        (second / "new").write_bytes(b"")
        (second / "new").rename(second / "a.db")
        (first / "a.db").unlink()
        assert watcher.changed() == {first, second}

    def test_directory_that_took_the_place_is_watched_again(self, watcher, directories, tmp_path):
        first, second = directories
        first.rename(tmp_path / "old")
        second.rename(first)
        assert first in watcher.changed()
        watcher.watch_files(first, first, FILES)
        (first / "a.db").write_bytes(b"2")
        # The second key is still watched for the directory that is the first one now.
        assert watcher.changed() == {first, second}
        (tmp_path / "old" / "a.db").write_bytes(b"2")
        assert watcher.changed() == set()

    def test_links_on_the_way_are_watched(self, watcher, directories, tmp_path):
        """A directory that is a link, and files that are, through a link that is swapped."""
        first, second = directories
        current = tmp_path / "current"
        current.symlink_to(first.name)
        inside = tmp_path / "inside"
        inside.mkdir()
        (inside / "..data").symlink_to(first)
        (inside / "a.db").symlink_to("..data/a.db")
        for directory in (current, inside):
            watcher.watch_files(directory, directory, FILES)
        for link, directory in ((current, current), (inside / "..data", inside)):
            (new := link.with_name("new")).symlink_to(second)
            new.rename(link)
            assert watcher.changed() == {directory}
        (tmp_path / "other").mkdir()
        assert watcher.changed() == set()
        # What they lead to now is watched from the next call on.
        for directory in (current, inside):
            watcher.watch_files(directory, directory, FILES)
        (second / "a.db").write_bytes(b"3")
        assert watcher.changed() == {second, current, inside}

    def test_lost_events_are_reported_as_unknown(self, watcher, directories, monkeypatch):
        overflow = inotify.Event(-1, inotify.OVERFLOW, b"")
        monkeypatch.setattr(inotify.Inotify, "read", lambda _self: [overflow])
        assert watcher.changed() is None

    def test_missing_directory_cannot_be_watched(self, watcher, tmp_path):
        with pytest.raises(FileNotFoundError):
            watcher.watch_files(tmp_path, tmp_path / "none", FILES)


@pytest.mark.parametrize(
    ("directory", "name", "concerned"),
    [
        (b"/srv/a", None, True),
        (b"/srv/a/b", b"file", True),
        (b"/srv", b"a", True),
        (b"/srv", None, True),
        (b"/srv", b"other", False),
        (b"/srv/ab", None, False),
    ],
)
def test_mount_concerns_what_it_hides(tmp_path, monkeypatch, directory, name, concerned):
    with contextlib.closing(DirectoryWatcher[str]()) as watcher:
        monkeypatch.setattr(watcher._queue, "watch", lambda _directory, _mask: 1)
        monkeypatch.setattr(watcher._mounts, "changed", lambda: frozenset({b"/srv/a"}))
        watcher.watch("it", directory, name)
        assert watcher.changed() == ({"it"} if concerned else set())
