"""Keeps fingerprints of the input paths that results depend on, and drops them when something changes.

A fingerprint comes from a scan of the whole path in a worker thread. It holds until the kernel reports a
change there; then it is missing until the next scan is done. Every call reads first what the kernel has
reported by then, so a change that is over when a request comes is never missed.

What the kernel does not report is found by scanning again from time to time: changes made on other hosts in a
network file system, by way of a hard link elsewhere, or by writing to mapped memory. A queue that ran over, a
path that vanished and came back, or something mounted there drops fingerprints as well.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.fingerprint import TooLargeError, WatchedPath, fingerprint
from stapsrv.system import inotify
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.changes import ChangeCount
from stapsrv.system.directory_watcher import DirectoryWatcher
from stapsrv.system.readiness import wait_readable

RESCAN_S = 900.0
# How long a path must be left alone before it is scanned again: installing packages takes its time.
_QUIET_S = 0.5
_MAX_QUIET_S = 30.0
# Kernel headers are many files, and disks may be slow.
_SCAN_TIMEOUT_S = 600.0


@attrs.define(eq=False)
class _Watched:
    path: WatchedPath
    fingerprint: bytes | None = None  # of the last scan, until something changes
    generation: int = 0  # the number of changes so far
    fault: str | None = None  # why it cannot be watched


class InputWatcher:
    """Watches input paths while :meth:`run` runs, and rescans all every ``rescan_s``; to be closed."""

    def __init__(self, *, log: Log, rescan_s: float = RESCAN_S) -> None:
        self._log = log
        self._rescan_s = rescan_s
        self._watched: dict[WatchedPath, _Watched] = {}
        self._pending = anyio.Event()
        self._scanned = anyio.Event()
        self._changed = anyio.Event()
        self.changes = ChangeCount()  # of all that is watched
        self._count_logged = 0
        self._directories: DirectoryWatcher[WatchedPath] = DirectoryWatcher(inotify.CHANGE | inotify.MODIFY)
        self._calls = BlockingCalls(timeout_s=_SCAN_TIMEOUT_S)

    def close(self) -> None:
        """Stop watching."""
        self._directories.close()

    def watch(self, paths: Iterable[WatchedPath]) -> None:
        """Watch paths from now on; each has a fingerprint once it has been scanned."""
        for path in paths:
            if path not in self._watched:
                self._watched[path] = _Watched(path)
                self._pending.set()

    def fingerprint(self, paths: Sequence[WatchedPath]) -> bytes | None:
        """Return the fingerprint of all the paths together as of now; None while one is missing."""
        self._read_events()
        sha = hashlib.sha256()
        for path in paths:
            watched = self._watched.get(path)
            if watched is None or watched.fingerprint is None:
                return None
            sha.update(watched.fingerprint)
        return sha.digest()

    def generation(self, paths: Sequence[WatchedPath]) -> int:
        """Return how often the paths have changed; the same number twice means no change in between."""
        # A fingerprint does not show that: it may be the same after two changes, or after one within a tick.
        self._read_events()
        return sum(self._watched[path].generation for path in paths if path in self._watched)

    def fault(self, paths: Sequence[WatchedPath]) -> str | None:
        """Return why one of the paths cannot be watched, if so."""
        faults = (self._watched[path].fault for path in paths if path in self._watched)
        return next((fault for fault in faults if fault is not None), None)

    async def wait_scanned(self, paths: Sequence[WatchedPath]) -> None:
        """Wait until all the paths have a fingerprint at once, or one cannot be watched."""
        self.watch(paths)
        while self.fingerprint(paths) is None and self.fault(paths) is None:
            await self._scanned.wait()

    async def wait_changed(self, paths: Sequence[WatchedPath], *, since: int) -> None:
        """Wait until the generation of the paths is not ``since`` any more."""
        while self.generation(paths) == since:
            await self._changed.wait()

    async def run(self) -> None:
        """Scan what has no fingerprint, follow changes, rescan from time to time; until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_changes)
            tasks.start_soon(self._rescan)
            while True:
                await self._pending.wait()
                self._pending = anyio.Event()
                for watched in list(self._watched.values()):
                    if watched.fingerprint is None and watched.fault is None:
                        await self._scan_until_quiet(watched)
                if self._count_logged != len(self._watched):
                    self._count_logged = len(self._watched)
                    self._log.info("cache.watching", paths=len(self._watched))

    async def _follow_changes(self) -> None:
        while True:
            await wait_readable(self._directories.descriptor)
            self._read_events()

    async def _rescan(self) -> None:
        while True:
            await anyio.sleep(self._rescan_s)
            for watched in list(self._watched.values()):
                generation = watched.generation
                found = await self._scan(watched)
                self._read_events()
                if found != watched.fingerprint and generation == watched.generation:
                    # A change like those that are reported: a compile that runs may have read either.
                    self._invalidate(watched)
                    self._log.info("cache.missed_change", path=watched.path.path)

    async def _scan_until_quiet(self, watched: _Watched) -> None:
        quiet_s = 0.0
        while True:
            await anyio.sleep(quiet_s)
            generation = watched.generation
            found = await self._scan(watched)
            self._read_events()
            if generation == watched.generation:
                watched.fingerprint = found
                self._scanned.set()
                self._scanned = anyio.Event()
                return
            quiet_s = min(max(_QUIET_S, 2 * quiet_s), _MAX_QUIET_S)

    async def _scan(self, watched: _Watched) -> bytes | None:
        watch = functools.partial(self._directories.watch, watched.path)
        try:
            found = await self._calls.run(functools.partial(fingerprint, watched.path, watch))
        except (OSError, TooLargeError) as exc:
            if watched.fault is None:
                self._log.warning("cache.unwatched", path=watched.path.path, reason=exc)
            watched.fault = str(exc)
            return None
        watched.fault = None
        return found

    def _read_events(self) -> None:
        changed = self._directories.changed()
        if changed is None:
            self._log.warning("cache.overflow")
        for path in list(self._watched) if changed is None else changed:
            watched = self._watched.get(path)
            if watched is not None:
                self._invalidate(watched)

    def _invalidate(self, watched: _Watched) -> None:
        watched.fingerprint = None
        watched.generation += 1
        self._pending.set()
        self.changes.note()
        self._changed.set()
        self._changed = anyio.Event()
