"""The grounds that results stand on: places in the file system, kept under watch.

Each place has a fingerprint from a look at all of it, made in a worker thread. It holds until the kernel
tells of a change there; then it is unknown until the next look is done. Whoever asks gets what holds at
that moment: all that the kernel has told by then is read first. So a change that is over when a request
comes is never missed.

What the kernel does not tell is found by looking again from time to time: changes made on other hosts in
a network file system, by way of a hard link elsewhere, or by writing to mapped memory. A queue that ran
over, a place that vanished and came back, or something mounted there makes places unknown as well.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterable, Sequence

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.fingerprint import TooLargeError, WatchedPath, fingerprint
from stapsrv.system import inotify
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.mount_table import Mounts

CHECK_S = 900.0
_QUIET_S = 0.5
"""How long a place has to be left alone before it is looked at again: installing packages takes its time."""
_MOST_QUIET_S = 30.0
_PATIENCE_S = 600.0
"""For a look at a place: kernel headers are many files, and disks may be slow."""

_MASK = inotify.CHANGE | inotify.MODIFY
_GONE = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED


@attrs.define(eq=False)
class _Watched:
    """A place, and what is known of it.

    Attributes:
        place: where.
        known: its fingerprint, or None.
        changes: how many were told of.
        changed_at: the loop's time of the last one.
        fault: why it cannot be watched, or None.
    """

    place: WatchedPath
    known: bytes | None = None
    changes: int = 0
    changed_at: float = 0.0
    fault: str | None = None


class InputWatcher:
    """Places under watch; to be used while :meth:`run` runs, and closed afterwards.

    Args:
        log: hears of what cannot be watched.
        check_s: seconds between two full looks at everything.
    """

    def __init__(self, *, log: Log, check_s: float = CHECK_S) -> None:
        self._log = log
        self._check_s = check_s
        self._watched: dict[WatchedPath, _Watched] = {}
        self._pending = anyio.Event()
        self._news = anyio.Event()
        self._told = True
        self._ears = _Events()
        self._files = BlockingCalls(timeout_s=_PATIENCE_S)

    def close(self) -> None:
        """Watch nothing any more."""
        self._ears.close()

    def want(self, places: Iterable[WatchedPath]) -> None:
        """Have places under watch from now on; they become known when they have been looked at."""
        for place in places:
            if place not in self._watched:
                self._watched[place] = _Watched(place)
                self._told = False
                self._pending.set()

    def fingerprint(self, places: Sequence[WatchedPath]) -> bytes | None:
        """Return what the places are now, all together; None while one is unknown."""
        self._listen()
        sha = hashlib.sha256()
        for place in places:
            watched = self._watched.get(place)
            if watched is None or watched.known is None:
                return None
            sha.update(watched.known)
        return sha.digest()

    def changes(self, places: Sequence[WatchedPath]) -> int:
        """Return how many changes of the places were heard of; the same number twice: there was none between.

        A fingerprint may be the same again after two changes, or after one within a tick of the clock.
        """
        self._listen()
        return sum(self._watched[place].changes for place in places if place in self._watched)

    def fault(self, places: Sequence[WatchedPath]) -> str | None:
        """Return why one of the places will not become known, if so."""
        faults = (self._watched[place].fault for place in places if place in self._watched)
        return next((fault for fault in faults if fault is not None), None)

    async def wait_scanned(self, places: Sequence[WatchedPath]) -> None:
        """Wait until all the places are known at once, or one cannot be."""
        self.want(places)
        while self.fingerprint(places) is None and self.fault(places) is None:
            await self._news.wait()

    async def run(self) -> None:
        """Look at what is unknown, hear of changes, look at everything from time to time; until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._hear)
            tasks.start_soon(self._check)
            while True:
                await self._pending.wait()
                self._pending = anyio.Event()
                for watched in list(self._watched.values()):
                    if watched.known is None and watched.fault is None:
                        await self._look(watched)
                if not self._told:
                    self._told = True
                    self._log.info("cache.watching", places=len(self._watched))

    async def _hear(self) -> None:
        while True:
            await anyio.wait_readable(self._ears.descriptor)
            self._listen()

    async def _check(self) -> None:
        while True:
            await anyio.sleep(self._check_s)
            for watched in list(self._watched.values()):
                changes = watched.changes
                found = await self._see(watched)
                self._listen()
                if found != watched.known and changes == watched.changes:
                    # Changed behind the kernel's back. What came of it in between is not known to be right.
                    self._forget(watched)
                    self._log.info("cache.unnoticed", place=watched.place.path)

    async def _look(self, watched: _Watched) -> None:
        """Look at a place until nothing changed meanwhile."""
        quiet_s = 0.0
        while True:
            await anyio.sleep(quiet_s)
            changes = watched.changes
            found = await self._see(watched)
            self._listen()
            if changes == watched.changes:
                watched.known = found
                self._tell()
                return
            quiet_s = min(max(_QUIET_S, 2 * quiet_s), _MOST_QUIET_S)

    async def _see(self, watched: _Watched) -> bytes | None:
        look = functools.partial(
            fingerprint, watched.place, functools.partial(self._ears.listen_to, watched.place)
        )
        try:
            found = await self._files.run(look)
        except (OSError, TooLargeError) as exc:
            if watched.fault is None:
                self._log.warning("cache.unwatched", place=watched.place.path, reason=exc)
            watched.fault = str(exc)
            return None
        watched.fault = None
        return found

    def _listen(self) -> None:
        """Take in what the kernel has told so far."""
        heard = self._ears.heard()
        if heard is None:
            self._log.warning("cache.overflow")
        for place in list(self._watched) if heard is None else heard:
            watched = self._watched.get(place)
            if watched is not None:
                self._forget(watched)

    def _forget(self, watched: _Watched) -> None:
        watched.known = None
        watched.changes += 1
        self._pending.set()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


class _Events:
    """The kernel's queue of events, its table of mounts, and which places each directory is watched for.

    Directories are added in worker threads; the queue is read in the event loop's.
    """

    def __init__(self) -> None:
        self._queue = inotify.Inotify()
        try:
            self._mounts = Mounts()
        except OSError:
            self._queue.close()
            raise
        self._lock = threading.Lock()
        self._places: dict[int, set[tuple[WatchedPath, bytes, bytes | None]]] = {}

    @property
    def descriptor(self) -> int:
        return self._queue.descriptor

    def close(self) -> None:
        self._queue.close()
        self._mounts.close()

    def listen_to(self, place: WatchedPath, directory: bytes, name: bytes | None) -> None:
        """Watch a directory, or one entry of it, for a place.

        Args:
            place: whose.
            directory: by a path without links.
            name: of the entry; None for all.

        Raises:
            OSError: it cannot be watched.
        """
        # Under the lock, lest an event is read before its watch is known.
        with self._lock:
            watch = self._queue.watch(directory, _MASK)
            self._places.setdefault(watch, set()).add((place, directory, name))

    def heard(self) -> set[WatchedPath] | None:
        """Return the places that changed since the last call; None if that is not known."""
        events = self._queue.read()
        points = self._mounts.changed()
        if not events and not points:
            return set()
        changed = set()
        with self._lock:
            if points:
                changed |= {
                    place
                    for watched in self._places.values()
                    for place, directory, name in watched
                    if _is_shown_by(points, directory, name)
                }
            for event in events:
                if event.mask & inotify.OVERFLOW:
                    return None
                gone = event.mask & _GONE and not event.name
                for place, _directory, name in self._places.get(event.watch, ()):
                    if name is None or gone or name == event.name:
                        changed.add(place)
                if event.mask & inotify.IGNORED:
                    self._places.pop(event.watch, None)
        return changed


def _is_shown_by(points: Iterable[bytes], directory: bytes, name: bytes | None) -> bool:
    """Whether one of the mounts at ``points`` decides on what a directory, or an entry of it, shows."""
    path = directory if name is None else os.path.join(directory, name)  # noqa: PTH118 - paths are bytes
    return any(
        _slashed(path).startswith(_slashed(point))
        or (name is None and _slashed(os.path.dirname(point)) == _slashed(directory))  # noqa: PTH120 - likewise
        for point in points
    )


def _slashed(path: bytes) -> bytes:
    return path.rstrip(b"/") + b"/"
