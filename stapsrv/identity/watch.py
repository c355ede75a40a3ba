"""Hearing of changes to certificate databases (:mod:`stapsrv.system.inotify`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from stapsrv.identity.nss import KEPT_FILES
from stapsrv.system import inotify
from stapsrv.system.symlinks import follow

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
_ITSELF = b""
"""The name in what happens to a watched directory itself."""


class DatabaseWatch:
    """Hears when databases are written or replaced; to be closed.

    Raises:
        OSError: this user watches too much already (``fs.inotify.max_user_instances``).
    """

    def __init__(self) -> None:
        self._queue = inotify.Inotify()
        self._entries: dict[Path, frozenset[tuple[int, bytes]]] = {}
        """What each directory's database depends on: watches, and names in what they watch."""

    @property
    def descriptor(self) -> int:
        """It can be read from when there is something to hear."""
        return self._queue.descriptor

    def arm(self, directory: Path) -> None:
        """Hear of changes of a directory's database from now on; to be called before each look at it.

        What the links on the way to its files lead to is listened to, and they themselves: some change what
        is there by a link alone.

        Raises:
            OSError: it cannot be watched, perhaps since it is not there.
        """
        own = self._queue.watch(os.fsencode(directory), _CHANGE)
        entries = {(own, os.fsencode(name)) for name in KEPT_FILES} | {(own, _ITSELF)}
        for name in KEPT_FILES:
            real, links = follow(directory / name)
            for path in (*(link.path for link in links), *(() if real is None else (real,))):
                # Not every directory on the way is for this user to read.
                with contextlib.suppress(OSError):
                    watch = self._queue.watch(os.fsencode(path.parent), _CHANGE)
                    entries |= {(watch, os.fsencode(path.name)), (watch, _ITSELF)}
        before = self._entries.get(directory, frozenset())
        self._entries[directory] = frozenset(entries)
        needed = {watch for entries in self._entries.values() for watch, _name in entries}
        for watch in {watch for watch, _name in before} - needed:
            self._queue.unwatch(watch)

    def heard(self) -> frozenset[Path]:
        """Return the directories whose database changed since the last call, without waiting.

        A change that was made before the call is always told of.
        """
        events = self._queue.read()
        told = {(event.watch, event.name) for event in events}
        is_unclear = any(event.mask & inotify.OVERFLOW for event in events)
        # A copy, since others are armed meanwhile.
        return frozenset(
            directory for directory, entries in list(self._entries.items()) if is_unclear or entries & told
        )

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
