"""The kernel's queue of events, read without waiting."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from stapsrv.system import inotify


@pytest.fixture
def queue() -> Iterator[inotify.Inotify]:
    with contextlib.closing(inotify.Inotify()) as queue:
        yield queue


def test_change_is_in_the_queue_when_its_call_returns(queue, tmp_path):
    watch = queue.watch(os.fsencode(tmp_path), inotify.CHANGE)
    assert queue.read() == []
    (tmp_path / "file").touch()
    assert queue.read()[0] == inotify.Event(watch, inotify.CREATE, b"file")
    (tmp_path / "file").unlink()
    assert queue.read() == [inotify.Event(watch, inotify.DELETE, b"file")]


def test_same_directory_has_the_same_number(queue, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    numbers = {queue.watch(os.fsencode(path), inotify.CHANGE) for path in (tmp_path, tmp_path / "link")}
    assert len(numbers) == 1


def test_unwatched_directory_has_no_more_events(queue, tmp_path):
    watch = queue.watch(os.fsencode(tmp_path), inotify.CHANGE)
    queue.unwatch(watch)
    (tmp_path / "file").touch()
    assert queue.read() == [inotify.Event(watch, inotify.IGNORED, b"")]
    queue.unwatch(watch)


def test_only_directories_can_be_watched(queue, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        queue.watch(os.fsencode(tmp_path / "file"), inotify.CHANGE)
    with pytest.raises(FileNotFoundError):
        queue.watch(os.fsencode(tmp_path / "none"), inotify.CHANGE)
