"""stap's own cache takes no notice of changed headers and compilers: what to do about that.

stap finds a module again by a digest of the C that it made, and what it has found out about the types in a
header (``typequery_*``, ``tracequery_*``; for ``@cast`` and tracepoints) by the header's name. So the
toolchain that each module was built with is noted beside the results. If it has changed since, stap has to
build the module anew (``--poison-cache``), and likewise the first module after any change; the types are
removed, because they go into modules that were never built before. Seen with SystemTap 4.8.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.cacheable import module_name
from stapsrv.compile.cache.disk import NOTE_PREFIX
from stapsrv.compile.cache.key import CacheKey, digest
from stapsrv.compile.cache.storage import ResultStorage
from stapsrv.compile.engine.base import Compiled, CompileJob, CompileResult, Engine
from stapsrv.compile.protocol.options import parse_options
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.system.blocking import BlockingCalls

_TYPES = ("typequery_*", "tracequery_*")
_CLEAN_S = 60.0

IsCacheable = Callable[[CompileResult], Awaitable[bool]]


class StapCache:
    """stap's own cache, and the notes of the toolchains that its contents were built with.

    Args:
        directory: stap's; need not exist.
        storage: where the notes are.
        is_unchanged: whether the toolchain of a job was known, and has not changed since its key.
    """

    def __init__(
        self,
        directory: Path,
        storage: ResultStorage,
        *,
        is_unchanged: Callable[[CacheKey, CompileJob], bool],
        log: Log,
    ) -> None:
        self._directory = directory
        self._storage = storage
        self._is_unchanged = is_unchanged
        self._log = log
        self._files = BlockingCalls(timeout_s=_CLEAN_S)
        self.tainted = 0
        """Compiles during which the toolchain changed: what they left in the cache may be of either state."""
        self._cleaned = 0
        """How many of these there were when types were last removed."""

    async def compile(
        self, key: CacheKey, job: CompileJob, engine: Engine[Compiled], is_cacheable: IsCacheable
    ) -> Compiled:
        """Compile a job; once more, if stap had a cacheable module in its cache that may be out of date."""
        last = await self._storage.read(_note_of_server("last", job))
        compiled = await self.run(key, job, engine, anew=last not in {None, key.toolchain_digest})
        async with contextlib.AsyncExitStack() as leaving:
            leaving.push_async_callback(compiled.release)
            if compiled.built or not await is_cacheable(compiled.result):
                leaving.pop_all()
                return compiled
            await self._note_first(key, job)
            built_with = await self._storage.read(_note_of_module("module", compiled.result))
            if built_with is None:
                # From before this program saw the cache for the first time: taken as it is, as stap does.
                built_with = await self._storage.read(_note_of_server("first", job))
            if built_with == key.toolchain_digest:
                leaving.pop_all()
                return compiled
        return await self.run(key, job, engine, anew=True)

    async def run(
        self, key: CacheKey, job: CompileJob, engine: Engine[Compiled], *, anew: bool = False
    ) -> Compiled:
        """Compile a job once, and notice a change of the toolchain meanwhile, however the compile ends."""
        try:
            compiled = await engine.compile(attrs.evolve(job, anew=anew))
        finally:
            self.tainted += not self._is_unchanged(key, job)
        if anew:
            async with contextlib.AsyncExitStack() as leaving:
                leaving.push_async_callback(compiled.release)
                # At once: until this is noted, other requests are built anew as well.
                await self._note_build(key, job, compiled)
                leaving.pop_all()
        return compiled

    async def note(self, key: CacheKey, job: CompileJob, compiled: Compiled) -> None:
        """Note with which toolchain a module was built."""
        await self._note_first(key, job)
        await self._note_build(key, job, compiled)

    async def remove_old_types(self, key: CacheKey, job: CompileJob) -> bool:
        """Remove the types in headers if these may be others now; return whether none is out of date."""
        note, tainted = _note_of_server("types", job), self.tainted
        if tainted == self._cleaned and await self._storage.read(note) == key.toolchain_digest:
            return True
        # First: where nothing can be noted, types would be removed for each request.
        if not await self._storage.write(note, b""):
            return False
        try:
            await self._files.run(partial(remove_types, self._directory))
        except OSError as exc:
            self._log.warning("cache.unwritable", reason=exc)
            return False
        self._cleaned = tainted
        return await self._storage.write(note, key.toolchain_digest)

    async def note_outside(self, result: CompileResult, path: str) -> None:
        """Note that a module was made from a file elsewhere; nothing shows that once stap has it cached."""
        await self._storage.write(_note_of_module("outside", result), os.fsencode(path))

    async def is_from_outside(self, result: CompileResult) -> bool:
        """Whether a module was noted by :meth:`note_outside`."""
        return await self._storage.read(_note_of_module("outside", result)) is not None

    async def _note_first(self, key: CacheKey, job: CompileJob) -> None:
        note = _note_of_server("first", job)
        if key.environment_digest is not None and await self._storage.read(note) is None:
            await self._storage.write(note, key.toolchain_digest)

    async def _note_build(self, key: CacheKey, job: CompileJob, compiled: Compiled) -> None:
        """Note the toolchain of a module that was built; none, if it changed meanwhile or a limit was met."""
        is_limited = compiled.result.limit_met is not None
        toolchain = b"" if is_limited or not self._is_unchanged(key, job) else key.toolchain_digest
        # A module that a client named is not in stap's cache, where there may be another of that name.
        is_named = any(name == "m" for name, _value in parse_options(job.request.arguments).options)
        if compiled.built and not is_named:
            await self._storage.write(_note_of_module("module", compiled.result), toolchain)
        if key.environment_digest is not None and (compiled.built or is_limited):
            await self._storage.write(_note_of_server("last", job), toolchain)


def remove_types(cache: Path) -> None:
    """Remove what stap's cache has of the types in headers; stap finds it out again when it needs it.

    Raises:
        OSError: something could not be removed.
    """
    for names in _TYPES:
        for path in cache.glob(f"*/{names}"):
            path.unlink(missing_ok=True)


def server_digest(settings: ServerSettings, release: ServedRelease) -> bytes:
    """Return a digest of a server's options that decide on what is made of the C that stap wrote."""
    limits = settings.limits
    lists = (settings.build, limits.sandbox_read, limits.sandbox_write)
    single = (settings.arch, settings.runtime, release.argument, str(release.build_tree), release.arch)
    return digest(
        [*(digest(map(os.fsencode, values)) for values in lists), *(os.fsencode(str(one)) for one in single)]
    )


def _note_of_module(kind: str, result: CompileResult) -> str:
    return NOTE_PREFIX + digest((kind.encode(), (module_name(result) or "").encode())).hex()


def _note_of_server(kind: str, job: CompileJob) -> str:
    return NOTE_PREFIX + digest((kind.encode(), server_digest(job.settings, job.release))).hex()
