"""Cache entries by name, in memory and on disk; nobody waits longer than a bounded time for the disk."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Collection

from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.disk import DamagedError, DiskStore
from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.system.blocking import BlockingCalls

# Of results, a hundred scripts; with what they are deflated to, less than twice as much.
_MEMORY_BYTES = 16 * 1024 * 1024
# The directory may be on a file system that hangs: then a compile helps as well.
_TIMEOUT_S = 10.0


class ResultStorage:
    """The stored results, those used lately also in memory."""

    def __init__(self, store: DiskStore, *, log: Log) -> None:
        self._store = store
        self._log = log
        self._memory: OrderedDict[str, CacheEntry] = OrderedDict()
        self._memory_bytes = 0
        self._files = BlockingCalls(timeout_s=_TIMEOUT_S)

    async def get(self, name: str) -> CacheEntry | None:
        """Return the entry of this name, if it is on disk and can be read; from memory where it is there."""
        entry = self._memory.get(name)

        def look() -> CompileResult | None:
            if entry is not None and self._store.use(name):
                return entry.result
            body = self._store.read(name)
            return None if body is None else _decode_result(body)

        result = None
        try:
            result = await self._files.run(look)
        except OSError as exc:
            self._log.warning("cache.unreadable", reason=exc.strerror)
        except DamagedError:
            self._log.warning("cache.damaged", entry=name)
        if result is None:
            # What another process removed is no hit here either.
            self._forget(name)
            return None
        if entry is None or result is not entry.result:
            entry = CacheEntry.final(result)
        self._remember(name, entry)
        return entry

    async def put(self, name: str, entry: CacheEntry) -> bool:
        """Store an entry; return whether it could be written."""
        try:
            # Encoded in the thread as well: a large one is copied for that.
            await self._files.run(lambda: self._store.write(name, _encode_result(entry.result)))
        except OSError as exc:
            self._log.warning("cache.unwritable", reason=exc)
            return False
        self._remember(name, entry)
        return True

    async def pin(self, names: Collection[str], *, only: bool) -> None:
        """Evict these entries after all others (see :meth:`DiskStore.pin`)."""
        try:
            await self._files.run(lambda: self._store.pin(names, only=only))
        except OSError as exc:
            self._log.warning("cache.unwritable", reason=exc)

    def _remember(self, name: str, entry: CacheEntry) -> None:
        self._forget(name)
        self._memory[name] = entry
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
