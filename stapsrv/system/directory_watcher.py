"""Waiting for directories to change (:mod:`stapsrv.system.inotify`).

It waits on a descriptor, on both backends, where the usual packages either know asyncio alone or keep a
thread for each directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import anyio

from stapsrv.system import inotify


class DirectoryMonitor:
    """Hears of changes in directories and in those below each, one level deep.

    Args:
        directories: need not exist; their coming is a change.

    Raises:
        OSError: this user watches too much already (``fs.inotify.max_user_instances``).
    """

    def __init__(self, *directories: Path) -> None:
        self._directories = directories
        self._queue = inotify.Inotify()

    def arm(self) -> None:
        """Hear of every change from now on; to be called before each look at the directories.

        Raises:
            OSError: this user watches too much already (``fs.inotify.max_user_watches``).
        """
        for directory in self._directories:
            watched = None
            while (place := _nearest(directory)) != watched:
                # Once more, lest the next directory on the way was made just before.
                watched = place
                self._watch(place)
            if watched == directory:
                for child in _children(watched):
                    self._watch(child)

    async def wait_changed(self) -> None:
        """Wait for a change since :meth:`arm`; several at once are one."""
        await anyio.wait_readable(self._queue.descriptor)
        self._queue.read()

    def close(self) -> None:
        """Hear no more."""
        self._queue.close()

    def _watch(self, directory: Path) -> None:
        try:
            self._queue.watch(os.fsencode(directory), inotify.CHANGE)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            # Gone again, which whoever looks will see; or not ours to see.
            return


def _nearest(directory: Path) -> Path:
    """Return a directory, or what there is of the way to it."""
    return next(place for place in (directory, *directory.parents) if place.is_dir())


def _children(directory: Path) -> Iterator[Path]:
    try:
        with os.scandir(directory) as entries:
            yield from (Path(entry) for entry in entries if entry.is_dir())
    except OSError:
        return
