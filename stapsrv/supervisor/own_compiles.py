"""Compiles of the server's own scripts: one at a time over the process, at low priority, without a worker."""

from __future__ import annotations

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.result_cache import ResultCache
from stapsrv.compile.cache.stap_cache import Finding
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.engine.local import LocalEngine
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings

# The shortest scripts with which stap finds out what it keeps.
SHORTEST = {
    Finding.FEATURES: (b"-p4", b"-e", b"probe begin { exit() }"),
    Finding.TRACEPOINTS: (b"-p2", b"-e", b'probe kernel.trace("sched_switch") { exit() }'),
}
_DEFAULT_RUNTIME = "/usr/share/systemtap/runtime"


@attrs.frozen
class BuildKey:
    """All that decides whether a release can be compiled for; servers with equal keys share its health."""

    release: ServedRelease
    build: tuple[str, ...]
    define: tuple[str, ...]
    include: tuple[str, ...]
    runtime: str | None

    @classmethod
    def of(cls, settings: ServerSettings, release: ServedRelease) -> BuildKey:
        """Return how a server with such settings compiles for a release."""
        return cls(release, settings.build, settings.define, settings.include, settings.runtime)

    @property
    def paths(self) -> tuple[WatchedPath, ...]:
        """The paths whose contents decide whether it can be compiled for."""
        runtime = self.runtime or _DEFAULT_RUNTIME
        return tuple(map(WatchedPath, (str(self.release.build_tree), runtime, *self.include)))


def own_job(
    release: ServedRelease,
    settings: ServerSettings,
    arguments: tuple[bytes, ...],
    *,
    log: Log,
    makes_plan: bool = False,
) -> CompileJob:
    """Return the job of a script of the server's own."""
    request = CompileRequest(release=release.name, arch=release.arch, arguments=arguments)
    # There is no client who would look for it.
    settings = attrs.evolve(settings, keep_temporary=False)
    return CompileJob(
        request=request,
        release=release,
        settings=settings,
        log=log,
        background=True,
        own=True,
        makes_plan=makes_plan,
    )


@attrs.frozen(eq=False)
class OwnCompiles:
    """Compiles such jobs; a caller holds ``turn`` meanwhile, since they are compiled one at a time."""

    engine: LocalEngine
    # Chooses stap's own cache for a job; None where stap has only one.
    _cache: ResultCache | None
    turn: anyio.Lock = attrs.field(init=False, factory=anyio.Lock)

    async def run(self, job: CompileJob) -> CompileResult:
        """Compile a job, or raise OSError, RequestRejected or TranslatorError.

        Cancellation: nothing of the compile is left running, or on disk.
        """
        if self._cache is not None and job.settings.limits.result_cache:
            return await self._cache.run(job, self.engine)
        return await self.engine.run(job)
