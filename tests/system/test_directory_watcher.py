"""Changes in a directory are heard of, whether it is there yet or not."""

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
from stapsrv.system.directory_watcher import DirectoryMonitor

pytestmark = pytest.mark.anyio


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with one in it, which has a file."""
    place = tmp_path / "place"
    (place / "inner").mkdir(parents=True)
    (place / "inner" / "file").touch()
    return place


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[DirectoryMonitor]:
    with contextlib.closing(DirectoryMonitor(directory)) as monitor:
        monitor.arm()
        yield monitor


async def hears(monitor: DirectoryMonitor) -> None:
    with anyio.fail_after(20):
        await monitor.wait_changed()


def is_quiet(monitor: DirectoryMonitor) -> bool:
    """Whether nothing is to be heard: a change is in the queue when the call that made it returns."""
    return not select.select([monitor._queue.descriptor], [], [], 0)[0]


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
async def test_change_is_heard_of(place, change):
    with watched(place) as monitor:
        heard = anyio.Event()

        async def hear() -> None:
            await hears(monitor)
            heard.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hear)
            await anyio.wait_all_tasks_blocked()
            assert not heard.is_set()
            change(place)
        assert is_quiet(monitor)


async def test_reading_is_no_change(place):
    with watched(place) as monitor:
        (place / "inner" / "file").read_text()
        list(place.iterdir())
        monitor.arm()
        assert is_quiet(monitor)


async def test_directory_that_comes_step_by_step(tmp_path):
    wanted = tmp_path / "a" / "b" / "c"
    with watched(wanted) as monitor:
        for step in (tmp_path / "a", tmp_path / "a" / "b", wanted, wanted / "key"):
            step.mkdir()
            await hears(monitor)
            monitor.arm()
        (wanted / "key" / "file").touch()
        await hears(monitor)


async def test_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "a").touch()
    with watched(tmp_path / "a") as monitor:
        (tmp_path / "a").unlink()
        await hears(monitor)


async def test_too_many_watches(place, monkeypatch):
    class Refusing:
        def inotify_init1(self, _flags):
            ctypes.set_errno(errno.EMFILE)
            return -1

    monkeypatch.setattr(inotify, "_libc", Refusing())
    with pytest.raises(OSError, match="Too many open files"):
        DirectoryMonitor(place)
