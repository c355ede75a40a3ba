"""Can modules be compiled for the releases that are served?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import attrs

from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import ServedRelease, resolve_release
from stapsrv.config.settings import ServerSettings
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, fault, ok
from stapsrv.errors import ConfigError, StapsrvError
from stapsrv.supervisor.runtime import open_host
from stapsrv.system.blocking import BlockingCalls
from stapsrv.text import error_line

PROBE = b"probe begin { exit() }"
_PATIENCE_S = 180.0
"""A first compile for a kernel takes ten seconds, on a slow and busy host a minute."""
_REMEDY = (
    "mend the headers, or name a runtime that fits them (-R, RUNTIME=); "
    "patch-runtime of stapsrv makes one of SystemTap 4.8's"
)


async def check_releases(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Are the headers of each release there?"""
    if not patient.servers:
        yield failure("releases", "no configured server can be used", "run stap-server check")
    findings = [_headers(name, settings) for settings in patient.servers for name in settings.releases]
    for finding in dict.fromkeys(findings):
        yield finding


async def check_compiling(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Does a script of one line compile for each release, the way that requests do?"""
    jobs = await BlockingCalls().run(lambda: list(_jobs(patient))) if patient.compiles else []
    if not jobs:
        return
    async with open_host(patient.environ, tuning=patient.settings.tuning) as host:
        for job in jobs:
            question = f"compiling for {job.release.name}"
            try:
                result = await host.engine.run(attrs.evolve(job, deadline_s=_PATIENCE_S))
            except StapsrvError as exc:
                yield fault(question, exc)
                continue
            if result.status == 0:
                yield ok(question, "a script of one line compiles")
            else:
                yield failure(question, error_line(result.stderr), _REMEDY)


def _headers(name: str, settings: ServerSettings) -> Finding:
    try:
        release = _resolve(name, settings)
    except ConfigError as exc:
        return fault(f"headers of {name}", exc)
    return ok(f"headers of {release.name}", f"{release.build_tree.resolve()}, {release.arch}")


def _jobs(patient: DoctorContext) -> Iterator[CompileJob]:
    """Give one job for each release and way to compile for it."""
    seen = set()
    for settings in patient.servers:
        for name in settings.releases:
            try:
                release = _resolve(name, settings)
            except ConfigError:
                continue
            way = (release, settings.runtime, settings.include, settings.define, settings.build)
            if way not in seen:
                seen.add(way)
                yield CompileJob(request=_probe(release), release=release, settings=settings)


def _probe(release: ServedRelease) -> CompileRequest:
    return CompileRequest(
        version="4.8",
        release=release.name,
        arch=release.arch,
        arguments=(b"-p4", b"-e", PROBE),
        environment=(),
        messages=(),
        fingerprints=(),
        mok_missing=False,
        files=(),
        directories=(),
    )


def _resolve(name: str, settings: ServerSettings) -> ServedRelease:
    assert settings.arch is not None, "settings are resolved"  # noqa: S101
    return resolve_release(name, arch=settings.arch)
