"""Waiting for directories to change (inotify(7)).

By hand, in a few calls of the C library: it waits on a descriptor, on both backends, where the usual
packages either know asyncio alone or keep a thread for each directory.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import anyio

_ATTRIB, _CLOSE_WRITE = 0x4, 0x8
_MOVED_FROM, _MOVED_TO = 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_ONLYDIR = 0x0100_0000
_MASK = (
    _ATTRIB
    | _CLOSE_WRITE
    | _MOVED_FROM
    | _MOVED_TO
    | _CREATE
    | _DELETE
    | _DELETE_SELF
    | _MOVE_SELF
    | _ONLYDIR
)
_EVENT_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryMonitor:
    """Hears of changes in directories and in those below each, one level deep.

    Args:
        directories: need not exist; their coming is a change.

    Raises:
        OSError: this user watches too much already (``fs.inotify.max_user_instances``).
    """

    def __init__(self, *directories: Path) -> None:
        self._directories = directories
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

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
        await anyio.wait_readable(self._descriptor)
        try:
            while os.read(self._descriptor, _EVENT_BYTES):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Hear no more."""
        os.close(self._descriptor)

    def _watch(self, directory: Path) -> None:
        try:
            _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _MASK))
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


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
