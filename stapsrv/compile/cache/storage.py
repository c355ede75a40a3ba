"""Cache entries by name, in memory and on disk; nobody waits longer than a bounded time for the disk."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections import OrderedDict
from functools import partial

from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.disk import DamagedError, DiskStore, StoreStatistics
from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.compile.stats import CacheStatistics
from stapsrv.system.blocking import BlockingCalls

# Of results, a hundred scripts; with what they are deflated to, less than twice as much.
_MEMORY_BYTES = 16 * 1024 * 1024
_TOUCH_S = 60.0
# The directory may be on a file system that hangs: then a compile helps as well.
_TIMEOUT_S = 10.0


class ResultStorage:
    """The stored results, those used lately also in memory."""

    def __init__(self, store: DiskStore, *, log: Log) -> None:
        self._store = store
        self._log = log
        self._memory: OrderedDict[str, CacheEntry] = OrderedDict()
        self._memory_bytes = 0
        self._evicted = 0
        self._damaged = 0
        self._files = BlockingCalls(timeout_s=_TIMEOUT_S)

    async def get(self, name: str) -> CacheEntry | None:
        """Return the entry of this name, if there is one."""
        entry = self._memory.get(name)
        if entry is not None and await self._is_on_disk(name):
            if name in self._memory:  # else others have pushed it out meanwhile
                self._memory.move_to_end(name)
            now = time.monotonic()
            if now - entry.touched > _TOUCH_S:
                entry.touched = now
                with contextlib.suppress(OSError):
                    await self._files.run(partial(self._store.touch, name))
            return entry
        if entry is not None:
            # Another process removed it.
            self._forget(name)
        result = await self._read(name)
        if result is None:
            return None
        entry = CacheEntry.final(result)
        self._remember(name, entry)
        return entry

    async def put(self, name: str, entry: CacheEntry) -> bool:
        """Store an entry; return whether it could be written."""
        if not await self._write(name, entry.result):
            return False
        self._remember(name, entry)
        return True

    async def _write(self, name: str, result: CompileResult) -> bool:
        """Write a result; return whether it could be written."""
        try:
            # Encoded in the thread as well: a large one is copied for that.
            self._evicted += await self._files.run(lambda: self._store.write(name, _encode_result(result)))
        except OSError as exc:
            self._log.warning("cache.unwritable", reason=exc)
            return False
        return True

    async def _read(self, name: str) -> CompileResult | None:
        """Return a result of the store, if it can be read."""

        def read() -> CompileResult | None:
            body = self._store.read(name)
            return None if body is None else _decode_result(body)

        try:
            return await self._files.run(read)
        except OSError as exc:
            self._log.warning("cache.unreadable", reason=exc.strerror)
            return None
        except DamagedError:
            self._damaged += 1
            self._log.warning("cache.damaged", entry=name)
            return None

    async def statistics(self) -> CacheStatistics:
        """Return a snapshot; reads the directory."""
        stored = StoreStatistics(0, 0)
        with contextlib.suppress(OSError):
            stored = await self._files.run(self._store.statistics)
        return CacheStatistics(
            directory=self._store.directory,
            evicted=self._evicted,
            damaged=self._damaged,
            **stored._asdict(),
        )

    async def _is_on_disk(self, name: str) -> bool:
        try:
            return await self._files.run(partial(self._store.has, name))
        except OSError:
            return False

    def _remember(self, name: str, entry: CacheEntry) -> None:
        self._forget(name)
        self._memory[name] = entry
        entry.touched = time.monotonic()
        self._memory_bytes += entry.size
        while self._memory_bytes > _MEMORY_BYTES and len(self._memory) > 1:
            self._forget(next(iter(self._memory)))

    def _forget(self, name: str) -> None:
        entry = self._memory.pop(name, None)
        if entry is not None:
            self._memory_bytes -= entry.size


def _encode_result(result: CompileResult) -> bytes:
    parts = [result.stdout, result.stderr, *(file.data for file in result.files)]
    head = {"status": result.status, "files": [file.path for file in result.files]}
    described = json.dumps({"head": head, "sizes": [len(part) for part in parts]}).encode()
    return b"%d\n" % len(described) + described + b"".join(parts)


def _decode_result(body: bytes) -> CompileResult | None:
    stream = io.BytesIO(body)
    try:
        described = json.loads(stream.read(int(stream.readline())))
        head, sizes = described["head"], described["sizes"]
        if stream.tell() + sum(sizes) != len(body):
            return None
        stdout, stderr, *contents = [stream.read(size) for size in sizes]
        named = tuple(ResponseFile(path, data) for path, data in zip(head["files"], contents, strict=True))
        return CompileResult(int(head["status"]), stdout, stderr, named)
    except (ValueError, KeyError, TypeError):
        return None
