"""stap's own caches: one directory for each state of the toolchain.

stap takes no notice of changed headers and compilers: it finds a module again by a digest of the script, and
what it has found out about a kernel and the types in its headers by their names. So it gets a cache directory
that is named by the toolchain's digest. One that a change of the toolchain, or a resource limit, may have
spoiled is marked as stale, and never used again. Seen with SystemTap 4.8.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.key import CacheKey
from stapsrv.system.blocking import BlockingCalls

# In stap's own directory; all servers and supervisors of a user share it.
CACHES_DIRECTORY = "server-stap-caches"

_MAX_DIRECTORIES = 8
# One that was used in this time may be in use by another process: a compile takes ten minutes at most.
_IN_USE_S = 3600.0
_STALE = "stale"
# stap itself keeps a cache within the megabytes that this file in it says.
_SIZE_LIMIT_FILE, _SIZE_LIMIT_MB = "cache_mb_limit", 128
_REMOVE_S = 60.0


@attrs.define(eq=False)
class StapCache:
    """A cache directory of stap's."""

    path: Path
    generation: int  # of the toolchain, when it was first used by this process
    is_stale: bool = False  # what is in it may be of another toolchain than its name says
    users: int = 0


class StapCaches:
    """The cache directories of stap below its own, ``systemtap``, which need not exist."""

    def __init__(self, systemtap: Path, *, log: Log) -> None:
        self._parent = systemtap / CACHES_DIRECTORY
        self._users_cache = systemtap / "cache"
        self._log = log
        self._current: dict[bytes, StapCache] = {}
        self._files = BlockingCalls()

    @contextlib.asynccontextmanager
    async def use(self, key: CacheKey) -> AsyncIterator[StapCache]:
        """Have the cache of a key's toolchain while the block runs; an OSError if none can be made."""
        cache = self._find(key)
        while not await self._files.run(partial(self._prepare, cache.path)):
            # Another process has spoiled it.
            cache.is_stale = True
            cache = self._find(key)
        cache.users += 1
        try:
            yield cache
        finally:
            cache.users -= 1
            if cache.is_stale:
                with anyio.CancelScope(shield=True):
                    await self._retire(cache)

    async def is_intact(self, cache: StapCache) -> bool:
        """Whether no process has spoiled a cache that is in use."""
        if cache.is_stale:
            return False
        try:
            return await self._files.run(lambda: cache.path.is_dir() and not (cache.path / _STALE).exists())
        except OSError:
            return False

    def _find(self, key: CacheKey) -> StapCache:
        digest, generation = key.toolchain_digest, key.generation[1]
        cache = self._current.get(digest)
        if cache is None or cache.is_stale or cache.generation != generation:
            name = digest.hex()[:32]
            if cache is not None:
                # A toolchain that has come back: compiles from before may still write to its first directory.
                name = f"{name}.{secrets.token_hex(4)}"
            cache = self._current[digest] = StapCache(self._parent / name, generation)
        return cache

    def _prepare(self, path: Path) -> bool:
        """Make a cache unless it is there; return whether it can be used."""
        if not path.is_dir():
            is_first = not self._parent.is_dir()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (path / _SIZE_LIMIT_FILE).write_text(f"{_SIZE_LIMIT_MB}\n")
            if is_first:
                self._adopt(path)
            self._evict()
        os.utime(path)
        return not (path / _STALE).exists()

    def _adopt(self, path: Path) -> None:
        """Copy what stap knows of kernels' features, ten seconds' work, from its user's own cache.

        What that has when this program sees it for the first time is taken as it is, as stap does.
        """
        for known in self._users_cache.glob("*/stapconf_*"):
            (path / known.parent.name).mkdir(mode=0o700, exist_ok=True)
            shutil.copy2(known, path / known.parent.name)

    def _evict(self) -> None:
        used = {path: path.stat().st_mtime for path in self._parent.iterdir()}
        unused = (path for path in used if time.time() - used[path] > _IN_USE_S)
        for path in sorted(unused, key=used.__getitem__)[: max(0, len(used) - _MAX_DIRECTORIES)]:
            _remove(path)

    async def _retire(self, cache: StapCache) -> None:
        try:
            await self._files.run((cache.path / _STALE).touch)
            if not cache.users:
                await self._files.run(partial(_remove, cache.path), timeout_s=_REMOVE_S)
        except OSError as exc:
            self._log.warning("cache.unwritable", reason=exc)


def _remove(path: Path) -> None:
    # Under another name first: whoever makes it anew begins with an empty one.
    gone = path.rename(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
    shutil.rmtree(gone, ignore_errors=True)
