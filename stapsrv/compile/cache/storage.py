"""Results by name, in memory and on disk; whoever waits for the disk does so for a bounded time."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from functools import partial

from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.disk import DamagedError, DiskStore, StoreStatistics, decode_body, encode_body
from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.protocol.response import AnswerFile
from stapsrv.compile.stats import CacheStatistics
from stapsrv.system.blocking import BlockingCalls

_HOT_BYTES = 16 * 1024 * 1024
"""Of results kept in memory beside the disk, a hundred scripts; with their answers four times as much."""
_TOUCH_S = 60.0
_PATIENCE_S = 10.0
"""For the directory of results, which may be on a file system that hangs: a compile helps as well."""


class ResultStorage:
    """The results that are kept, those asked for lately in memory, too; and notes beside them.

    Args:
        store: the directory.
        log: hears of what is wrong with it.
    """

    def __init__(self, store: DiskStore, *, log: Log) -> None:
        self._store = store
        self._log = log
        self._hot: OrderedDict[str, CacheEntry] = OrderedDict()
        self._hot_bytes = 0
        self._evicted = 0
        self._damaged = 0
        self._files = BlockingCalls(timeout_s=_PATIENCE_S)

    async def find(self, name: str) -> CacheEntry | None:
        """Return the result of this name, if there is one."""
        known = self._hot.get(name)
        if known is not None and await self._has(name):
            if name in self._hot:  # else others have pushed it out meanwhile
                self._hot.move_to_end(name)
            now = time.monotonic()
            if now - known.touched > _TOUCH_S:
                known.touched = now
                with contextlib.suppress(OSError):
                    await self._files.run(partial(self._store.touch, name))
            return known
        if known is not None:
            self._cool(name)
        body = await self.read(name)
        result = None if body is None else _decode_result(body)
        if result is None:
            return None
        known = CacheEntry.settle_as(result)
        self._warm(name, known)
        return known

    async def keep(self, name: str, known: CacheEntry) -> bool:
        """Keep a result; return whether it could be written."""
        if not await self.note(name, _encode_result(known.result)):
            return False
        self._warm(name, known)
        return True

    async def note(self, name: str, body: bytes) -> bool:
        """Write an entry; return whether it could be written."""
        try:
            self._evicted += await self._files.run(partial(self._store.write, name, body))
        except OSError as exc:
            self._log.warning("cache.unwritable", reason=exc)
            return False
        return True

    async def read(self, name: str) -> bytes | None:
        """Return what an entry holds, if it can be read."""
        try:
            return await self._files.run(partial(self._store.read, name))
        except OSError as exc:
            self._log.warning("cache.unreadable", reason=exc.strerror)
            return None
        except DamagedError:
            self._damaged += 1
            self._log.warning("cache.damaged", entry=name)
            return None

    async def statistics(self) -> CacheStatistics:
        """Return a snapshot; the directory is read for it."""
        stored = StoreStatistics(0, 0)
        with contextlib.suppress(OSError):
            stored = await self._files.run(self._store.statistics)
        return CacheStatistics(
            directory=self._store.directory,
            entries=stored.entries,
            stored_bytes=stored.stored_bytes,
            evicted=self._evicted,
            damaged=self._damaged,
        )

    async def _has(self, name: str) -> bool:
        try:
            return await self._files.run(partial(self._store.has, name))
        except OSError:
            return False

    def _warm(self, name: str, known: CacheEntry) -> None:
        """Keep a result in memory, and let go of those that were not asked for lately."""
        self._cool(name)
        self._hot[name] = known
        known.touched = time.monotonic()
        self._hot_bytes += known.size
        while self._hot_bytes > _HOT_BYTES and len(self._hot) > 1:
            self._cool(next(iter(self._hot)))

    def _cool(self, name: str) -> None:
        known = self._hot.pop(name, None)
        if known is not None:
            self._hot_bytes -= known.size


def _encode_result(result: CompileResult) -> bytes:
    head = {"status": result.status, "files": [file.path for file in result.files]}
    return encode_body(head, [result.stdout, result.stderr, *(file.data for file in result.files)])


def _decode_result(body: bytes) -> CompileResult | None:
    try:
        head, (stdout, stderr, *files) = decode_body(body)
        if not isinstance(head, dict):
            return None
        named = tuple(AnswerFile(path, data) for path, data in zip(head["files"], files, strict=True))
        return CompileResult(int(head["status"]), stdout, stderr, named)
    except (ValueError, KeyError, TypeError):
        return None
