"""Hearing of changes to certificate databases (:mod:`stapsrv.inotify`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from stapsrv import inotify
from stapsrv.identity.nss import KEPT_FILES

_CHANGE = (
    inotify.MODIFY
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
    | inotify.CREATE
    | inotify.DELETE
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
)
"""Not CLOSE_WRITE: pk12util opens a database for writing only to read it."""
_NAMES = {b"", *map(os.fsencode, KEPT_FILES)}


class DatabaseWatch:
    """Hears when databases are written or replaced; to be closed.

    Raises:
        OSError: this user watches too much already (``fs.inotify.max_user_instances``).
    """

    def __init__(self) -> None:
        self._queue = inotify.Inotify()
        self._directories: dict[int, Path] = {}

    @property
    def descriptor(self) -> int:
        """It can be read from when there is something to hear."""
        return self._queue.descriptor

    def arm(self, directory: Path) -> None:
        """Hear of changes of a directory's database from now on; to be called before each look at it.

        Raises:
            OSError: it cannot be watched, perhaps since it is not there.
        """
        self._directories[self._queue.watch(os.fsencode(directory), _CHANGE)] = directory

    def heard(self) -> frozenset[Path]:
        """Return the directories whose database changed since the last call, without waiting.

        A change that was made before the call is always told of.
        """
        changed: set[Path] = set()
        for event in self._queue.read():
            if event.mask & inotify.OVERFLOW:
                changed.update(self._directories.values())
            elif event.mask & inotify.IGNORED:
                self._directories.pop(event.watch, None)
            elif event.name in _NAMES and (directory := self._directories.get(event.watch)) is not None:
                changed.add(directory)
        return frozenset(changed)

    def close(self) -> None:
        """Hear no more."""
        self._queue.close()


@contextlib.contextmanager
def watching(log: FilteringBoundLogger | None) -> Iterator[DatabaseWatch | None]:
    """Have a watch for as long as the context lasts; None where this host lets us have none, as is logged."""
    try:
        watch = DatabaseWatch()
    except OSError as exc:
        if log is not None:
            log.warning("identity.unheard", reason=exc.strerror)
        yield None
        return
    with contextlib.closing(watch):
        yield watch
