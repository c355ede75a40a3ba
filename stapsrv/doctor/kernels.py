"""Checks of the kernels that are served: their headers, and a compile for each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import host_arch, resolve_release
from stapsrv.config.settings import ServerSettings
from stapsrv.doctor.context import DoctorContext, silent_log
from stapsrv.doctor.findings import Finding, error, failure, ok
from stapsrv.errors import ConfigError, StapsrvError
from stapsrv.supervisor.runtime import open_runtime
from stapsrv.system.blocking import BlockingCalls
from stapsrv.text import error_line

_ARGUMENTS = (b"-p4", b"-e", b"probe begin { exit() }")
# A first compile for a kernel takes ten seconds, on a slow and busy host a minute.
_TIMEOUT_S = 180.0
_REMEDY = (
    "mend the headers, or name a runtime that fits them (-R, RUNTIME=); "
    "patch-runtime of stapsrv makes one of SystemTap 4.8's"
)


async def check_releases(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that the headers of each release that this host compiles for are there."""
    if not context.servers:
        yield failure("releases", "no configured server can be used", "run stap-server check")
    findings = [
        _check_headers(name, settings)
        for settings in context.servers
        if settings.compiles_here
        for name in settings.releases
    ]
    for finding in dict.fromkeys(findings):
        yield finding


async def check_compiling(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that a script of one line compiles for each release, the way that requests do."""
    jobs = await BlockingCalls().run(partial(_probe_jobs, context)) if context.compiles else []
    if not jobs:
        return
    async with open_runtime(context.environ, tuning=context.settings.tuning) as runtime:
        # One after the other: each takes a whole core, which servers may need for their clients.
        for job in jobs:
            question = f"compiling for {job.release.name}"
            try:
                result = await runtime.engine.run(job)
            except StapsrvError as exc:
                yield error(question, exc)
                continue
            if result.status == 0:
                yield ok(question, "a script of one line compiles")
            else:
                remedy = runtime.engine.stap.explain_untested(job.release.name)
                yield failure(question, error_line(result.stderr), remedy or _REMEDY)


def _check_headers(name: str, settings: ServerSettings) -> Finding:
    try:
        release = resolve_release(name, arch=settings.arch or host_arch())
    except ConfigError as exc:
        return error(f"headers of {name}", exc)
    return ok(f"headers of {release.name}", f"{release.build_tree.resolve()}, {release.arch}")


def _probe_jobs(context: DoctorContext) -> list[CompileJob]:
    """Return one job for each release and way to compile for it."""
    jobs: dict[object, CompileJob] = {}
    for settings in context.servers:
        for name in settings.releases if settings.compiles_here else ():
            try:
                release = resolve_release(name, arch=settings.arch or host_arch())
            except ConfigError:
                continue
            way = (release, settings.runtime, settings.include, settings.define, settings.build)
            request = CompileRequest(release=release.name, arch=release.arch, arguments=_ARGUMENTS)
            job = CompileJob(
                request=request, release=release, settings=settings, log=silent_log(), deadline_s=_TIMEOUT_S
            )
            jobs.setdefault(way, job)
    return list(jobs.values())
