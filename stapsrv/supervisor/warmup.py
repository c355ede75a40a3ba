"""Compiles the shortest script for each served release, in the background, and follows their health.

stap needs ten seconds to get to know a kernel, and keeps what it has found out. So that no client waits for
that, each release is compiled for once when its first server has started: with low priority, one release at a
time over the whole process, without a worker, and not at all where the file of warm releases has it.

What stap finds out for a client's compile is not kept: no client's compile changes another's. Instead the
same is found out once more, in the background, with a script of the server's own.

A release that cannot be compiled for is unhealthy until a compile succeeds: the next attempt, after a change
of the kernel's build tree or of the runtime or after some time; or that of a client, whose requests are
attempted all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeGuard

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.fingerprint import WatchedPath, stamp
from stapsrv.compile.cache.result_cache import ResultCache
from stapsrv.compile.cache.stap_cache import Finding
from stapsrv.compile.cache.watcher import InputWatcher
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.engine.local import LocalEngine
from stapsrv.compile.engine.prepared.stand_in import PREPARED
from stapsrv.compile.engine.prepared.store import (
    ANOTHER_MAKEFILE,
    FEATURES_UNKNOWN,
    NOT_PREPARED,
    lacks_plan,
)
from stapsrv.compile.engine.prepared.variants import plan_options, plan_scripts
from stapsrv.compile.engine.signing import has_modules
from stapsrv.compile.health import Health, ReleaseHealth
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import RequestRejected, StapsrvError, TranslatorError
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.changes import ChangeCount
from stapsrv.system.json_file import JsonFile, with_fact
from stapsrv.text import error_line

_DEFAULT_RUNTIME = "/usr/share/systemtap/runtime"
# The shortest scripts with which stap finds out what it keeps.
_ARGUMENTS = {
    Finding.FEATURES: (b"-p4", b"-e", b"probe begin { exit() }"),
    Finding.TRACEPOINTS: (b"-p2", b"-e", b'probe kernel.trace("sched_switch") { exit() }'),
}
_PLAN = "plan"
# Stands for one where a release is wanted that no server serves.
_NO_SERVER = 0
# Until the same is found out again, where a client's compile still did not have it.
_FIND_AGAIN_S = 600.0
# What waits to be found out; clients can ask for ever new plans.
_MAX_FINDING = 8
_FIRST_DELAY_S, _MAX_DELAY_S = 60.0, 3600.0
# A package comes in many files; this long after the first change the next attempt begins.
_SETTLE_S = 2.0


@attrs.frozen
class WarmupKey:
    """All that decides whether a release can be compiled for; servers with equal keys share its health."""

    release: ServedRelease
    build: tuple[str, ...]
    define: tuple[str, ...]
    include: tuple[str, ...]
    runtime: str | None

    @classmethod
    def of(cls, settings: ServerSettings, release: ServedRelease) -> WarmupKey:
        """Return how a server with such settings compiles for a release."""
        return cls(release, settings.build, settings.define, settings.include, settings.runtime)

    @property
    def paths(self) -> tuple[WatchedPath, ...]:
        """The paths whose contents decide whether it can be compiled for."""
        runtime = self.runtime or _DEFAULT_RUNTIME
        return tuple(map(WatchedPath, (str(self.release.build_tree), runtime, *self.include)))


class WarmMemory:
    """The file of what has been compiled for; nothing in it counts once stap's own cache was removed."""

    def __init__(self, file: Path, cache: Path) -> None:
        self._memory = JsonFile(file, _is_identity)
        self._cache = cache

    def is_warm(self, digest: str) -> bool:
        """Whether this has been compiled for, and stap's cache is still the same; reads files."""
        cache = _identity(self._cache)
        return cache is not None and self._memory.read().get(digest) == cache

    def remember(self, digest: str) -> None:
        """Remember that this has been compiled for; writes files, as far as there is room."""
        cache = _identity(self._cache)
        if cache is not None:
            self._memory.write(with_fact(self._memory.read(), digest, cache))


def _identity(directory: Path) -> str | None:
    # A directory that is made anew in its place has another.
    try:
        status = directory.stat()
    except OSError:
        return None
    return f"{status.st_dev}:{status.st_ino}"


def _is_identity(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


@attrs.define(eq=False)
class WarmupTarget:
    """A release to compile for, and the servers that want it."""

    key: WarmupKey
    health: ReleaseHealth
    settings: ServerSettings
    log: Log
    wanted_by: set[int] = attrs.field(factory=set)
    generation: int = 0
    scope: anyio.CancelScope | None = None


# Without the watcher of the input paths it tries again after some time only.
@attrs.define(eq=False)
class Warmup:
    """Compiles for the releases of one process's servers; without a watcher it remembers nothing."""

    _engine: LocalEngine
    _memory: WarmMemory
    _watcher: InputWatcher | None
    # Chooses stap's own cache for that; None where stap has only one.
    _cache: ResultCache | None = attrs.field(kw_only=True, default=None)
    # Until a release that cannot be compiled for is tried again; doubled each time.
    _first_delay_s: float = attrs.field(kw_only=True, default=_FIRST_DELAY_S)
    _targets: dict[WarmupKey, WarmupTarget] = attrs.field(init=False, factory=dict)
    _one_at_a_time: anyio.Lock = attrs.field(init=False, factory=anyio.Lock)
    _files: BlockingCalls = attrs.field(init=False, factory=BlockingCalls)
    # None while it does not run.
    _tasks: TaskGroup | None = attrs.field(init=False, default=None)
    # Called after each change of a release's health; set before the first server is made ready.
    on_health_change: Callable[[ReleaseHealth], None] = attrs.field(init=False, default=lambda _health: None)
    # What was found out for clients, and when that began.
    _found: dict[tuple[object, ...], float] = attrs.field(init=False, factory=dict)
    # What is being found out, or waits for that.
    _finding: list[str] = attrs.field(init=False, factory=list)
    _findings: ChangeCount = attrs.field(init=False, factory=ChangeCount)

    def __attrs_post_init__(self) -> None:
        self._engine.on_findings = self._find
        self._engine.on_unplanned = self._plan

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Compile for what is wanted until cancelled; no compile is left running then."""
        try:
            async with anyio.create_task_group() as self._tasks:
                task_status.started()
                await anyio.sleep_forever()
        finally:
            # A client's compile may end later, and find something out.
            self._tasks = None

    def health(self, settings: ServerSettings, release: ServedRelease, log: Log) -> ReleaseHealth:
        """Return the health of a release; servers that compile alike share it, and the first one's log."""
        key = WarmupKey.of(settings, release)
        target = self._targets.get(key)
        if target is None:
            health = ReleaseHealth(self.on_health_change)
            target = self._targets[key] = WarmupTarget(key, health, settings, log)
        return target.health

    def add(self, server_id: int, settings: ServerSettings, healths: Iterable[ReleaseHealth]) -> None:
        """Compile for a server's releases, given by their health, unless its settings say not to."""
        if not settings.limits.warmup:
            return
        wanted = {id(health) for health in healths}
        for target in self._targets.values():
            if id(target.health) not in wanted or server_id in target.wanted_by:
                continue
            if not target.wanted_by and target.health.health is Health.HEALTHY:
                # Of an earlier life of the server: the kernel's headers may be others now.
                target.health.set(Health.UNTRIED)
            target.wanted_by.add(server_id)
            self._begin(target)

    def remove(self, server_id: int) -> None:
        """Give up a server's releases, but for those that others serve as well."""
        for target in list(self._targets.values()):
            target.wanted_by.discard(server_id)
            if not target.wanted_by and target.scope is not None:
                target.scope.cancel()
                target.scope = None

    async def wait_tried(self, settings: ServerSettings, release: ServedRelease, log: Log) -> None:
        """Wait until it is known whether a release can be compiled for, also one that no server serves."""
        if self._tasks is None or not settings.limits.warmup:
            return
        health = self.health(settings, release, log)
        tried = anyio.Event()
        try:
            if not self._targets[WarmupKey.of(settings, release)].wanted_by:
                self.add(_NO_SERVER, settings, [health])
            with health.when_tried(tried.set):
                await tried.wait()
        finally:
            self.remove(_NO_SERVER)

    async def wait_found(self) -> None:
        """Wait until nothing is being found out that a compile would have to find out for itself.

        Plans are not waited for: modules are built without them, too.
        """
        while set(self._finding) - {_PLAN}:
            await self._findings.wait_beyond(self._findings.count)

    def _find(self, job: CompileJob, findings: frozenset[Finding]) -> None:
        """Find out, in the background, what a client's compile had to find out for itself."""
        # stap keeps it for each of its modes.
        is_guru = any(name == "g" for name, _value in job.options.options)
        for finding in findings:
            arguments = ((b"-g",) if is_guru else ()) + _ARGUMENTS[finding]
            self._begin_finding(job, finding.name.lower(), arguments)
            if finding is Finding.FEATURES and job.record.build not in {None, NOT_PREPARED}:
                # It comes after its features, in the order of the lock.
                self._begin_finding(job, _PLAN, arguments)

    def _plan(self, job: CompileJob, result: CompileResult, known: frozenset[Finding]) -> None:
        """Make a plan, in the background, for builds like that of a client's compile."""
        sources = (file.data for file in result.files if file.path.endswith((".c", ".h")))
        # Only who knows the kernel's tracepoints can have asked for them; to find them out takes minutes.
        traced = job.record.build == ANOTHER_MAKEFILE and Finding.TRACEPOINTS in known
        for script in plan_scripts(sources, traced=traced):
            self._begin_finding(job, _PLAN, (*plan_options(job.options), b"-p4", b"-e", script))

    def _begin_finding(self, job: CompileJob, what: str, arguments: tuple[bytes, ...]) -> None:
        now = anyio.current_time()
        self._found = {what: began for what, began in self._found.items() if now - began < _FIND_AGAIN_S}
        key = (WarmupKey.of(job.settings, job.release), job.toolchain, what, arguments)
        if self._tasks is not None and key not in self._found and len(self._finding) < _MAX_FINDING:
            self._found[key] = now
            self._finding.append(what)
            own = _own_job(job.release, job.settings, arguments, log=job.log, makes_plan=what == _PLAN)
            self._tasks.start_soon(self._find_out, own, what)

    async def _find_out(self, job: CompileJob, what: str) -> None:
        facts = {"release": job.release.name, "what": what}
        began = anyio.current_time()
        try:
            async with self._one_at_a_time:
                result = await self._run(job)
            if not result.succeeded:
                job.log.warning("release.unfound", **facts, reason=error_line(result.stderr))
            elif job.makes_plan and job.record.build != PREPARED:
                job.log.info("prepared.none", release=job.release.name, reason=job.record.build)
            else:
                job.log.info("release.found", **facts, seconds=round(anyio.current_time() - began, 1))
        except (OSError, RequestRejected, TranslatorError) as exc:
            fault = exc.problem if isinstance(exc, StapsrvError) else str(exc)
            job.log.warning("release.unfound", **facts, reason=fault)
        except Exception:
            job.log.exception("release.crashed", release=job.release.name)
        finally:
            self._finding.remove(what)
            self._findings.note()

    def _begin(self, target: WarmupTarget) -> None:
        if self._tasks is not None and target.wanted_by and target.scope is None:
            target.scope = anyio.CancelScope()
            self._tasks.start_soon(self._maintain, target, target.scope)

    async def _maintain(self, target: WarmupTarget, scope: anyio.CancelScope) -> None:
        delay_s = self._first_delay_s
        try:
            with scope:
                while not await self._try(target):
                    if await self._wait_for_change(target, delay_s):
                        delay_s = self._first_delay_s
                    else:
                        delay_s = min(2 * delay_s, _MAX_DELAY_S)
        except Exception:
            target.log.exception("release.crashed", release=target.key.release.name)
        if target.scope is scope:
            target.scope = None

    async def _try(self, target: WarmupTarget) -> bool:
        try:
            # Before its turn: a tree that takes long to scan holds up no other release.
            digest = await self._digest(target)
            async with self._one_at_a_time:
                is_warm = digest is not None and await self._files.run(partial(self._memory.is_warm, digest))
                is_tried = not is_warm and target.health.health is not Health.HEALTHY
                if is_tried and await self._compile(target) and digest is not None:
                    await self._files.run(partial(self._memory.remember, digest))
        except (OSError, RequestRejected, TranslatorError) as exc:
            fault = str(exc)
            target.log.warning("release.unhealthy", release=target.key.release.name, reason=fault)
            target.health.set(Health.UNHEALTHY, fault)
            return False
        target.health.set(Health.HEALTHY)
        return True

    async def _digest(self, target: WarmupTarget) -> str | None:
        """Return what changes when another compile may come out differently; None where that is not known."""
        if self._watcher is None:
            return None
        paths = target.key.paths
        await self._watcher.wait_scanned(paths)
        target.generation = self._watcher.generation(paths)
        found = self._watcher.fingerprint(paths)
        if found is None:
            return None
        stap = self._engine.stap
        program = await self._files.run(partial(stamp, stap.path))
        facts = (stap.version.encode(), program, repr(target.key).encode("utf-8", "surrogateescape"), found)
        return hashlib.sha256(b"\n".join(facts)).hexdigest()[:32]

    async def _compile(self, target: WarmupTarget) -> bool:
        """Compile until done, or until a client's request has succeeded; return whether it was done."""
        release = target.key.release
        job = _own_job(release, target.settings, _ARGUMENTS[Finding.FEATURES], log=target.log)
        if target.health.health is Health.UNTRIED:
            target.health.set(Health.WARMING)
        began = anyio.current_time()
        result: CompileResult | None = None
        with anyio.CancelScope() as scope, target.health.when_healthy(scope.cancel):
            result = await self._run(job)
        if result is None:
            return False
        if result.status != 0 or not has_modules(result.files):
            fault = error_line(result.stderr)
            raise TranslatorError(fault, remedy=self._engine.stap.explain_untested(release.name))
        seconds = round(anyio.current_time() - began, 1)
        target.log.info("release.healthy", release=release.name, seconds=seconds)
        # The first compile of all finds the features out, for which a plan is made.
        if job.record.build == FEATURES_UNKNOWN or lacks_plan(job.record.build):
            # In a build of its own, whose failure says nothing of the release.
            self._begin_finding(job, _PLAN, _ARGUMENTS[Finding.FEATURES])
        return True

    async def _run(self, job: CompileJob) -> CompileResult:
        if self._cache is not None and job.settings.limits.result_cache:
            return await self._cache.run(job, self._engine)
        return await self._engine.run(job)

    async def _wait_for_change(self, target: WarmupTarget, delay_s: float) -> bool:
        changed = False
        with anyio.move_on_after(delay_s) as scope, target.health.when_healthy(scope.cancel):
            if self._watcher is None:
                await anyio.sleep_forever()
            else:
                # Of before the compile: what changed meanwhile counts.
                await self._watcher.wait_changed(target.key.paths, since=target.generation)
            changed = True
            await anyio.sleep(_SETTLE_S)
        return changed


def _own_job(
    release: ServedRelease,
    settings: ServerSettings,
    arguments: tuple[bytes, ...],
    *,
    log: Log,
    makes_plan: bool = False,
) -> CompileJob:
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
