"""Compiles the shortest script for each served release, in the background, and follows their health.

stap needs ten seconds to get to know a kernel, and keeps what it has found out. So that no client waits for
that, each release is compiled for once when its first server has started: with low priority, one release at a
time over the whole process, without a worker, and not at all where the file of warm releases has it.

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

from stapsrv.compile.cache.fingerprint import stamp
from stapsrv.compile.cache.stap_cache import Finding
from stapsrv.compile.cache.watcher import InputWatcher
from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.engine.signing import has_modules
from stapsrv.compile.health import Health, ReleaseHealth
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import RequestRejected, TranslatorError
from stapsrv.supervisor.findings import Findings
from stapsrv.supervisor.own_compiles import SHORTEST, BuildKey, OwnCompiles, own_job
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.json_file import JsonFile, with_fact
from stapsrv.text import error_line

# Stands for one where a release is wanted that no server serves.
_NO_SERVER = 0
_FIRST_DELAY_S, _MAX_DELAY_S = 60.0, 3600.0
# A package comes in many files; this long after the first change the next attempt begins.
_SETTLE_S = 2.0


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

    key: BuildKey
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

    _own: OwnCompiles
    _memory: WarmMemory
    _watcher: InputWatcher | None
    # Until a release that cannot be compiled for is tried again; doubled each time.
    _first_delay_s: float = attrs.field(kw_only=True, default=_FIRST_DELAY_S)
    _targets: dict[BuildKey, WarmupTarget] = attrs.field(init=False, factory=dict)
    _files: BlockingCalls = attrs.field(init=False, factory=BlockingCalls)
    # None while it does not run.
    _tasks: TaskGroup | None = attrs.field(init=False, default=None)
    # Called after each change of a release's health; set before the first server is made ready.
    on_health_change: Callable[[ReleaseHealth], None] = attrs.field(init=False, default=lambda _health: None)
    findings: Findings = attrs.field(init=False)

    @findings.default
    def _make_findings(self) -> Findings:
        return Findings(self._own)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Compile for what is wanted until cancelled; no compile is left running then."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self.findings.tasks = self._tasks
                task_status.started()
                await anyio.sleep_forever()
        finally:
            # A client's compile may end later, and find something out.
            self._tasks = self.findings.tasks = None

    def health(self, settings: ServerSettings, release: ServedRelease, log: Log) -> ReleaseHealth:
        """Return the health of a release; servers that compile alike share it, and the first one's log."""
        key = BuildKey.of(settings, release)
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
            if not self._targets[BuildKey.of(settings, release)].wanted_by:
                self.add(_NO_SERVER, settings, [health])
            with health.when_tried(tried.set):
                await tried.wait()
        finally:
            self.remove(_NO_SERVER)

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
            async with self._own.turn:
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
        stap = self._own.engine.stap
        program = await self._files.run(partial(stamp, stap.path))
        key = repr(attrs.astuple(target.key)).encode("utf-8", "surrogateescape")
        facts = (stap.version.encode(), program, key, found)
        return hashlib.sha256(b"\n".join(facts)).hexdigest()[:32]

    async def _compile(self, target: WarmupTarget) -> bool:
        """Compile until done, or until a client's request has succeeded; return whether it was done."""
        release = target.key.release
        job = own_job(release, target.settings, SHORTEST[Finding.FEATURES], log=target.log)
        if target.health.health is Health.UNTRIED:
            target.health.set(Health.WARMING)
        began = anyio.current_time()
        result: CompileResult | None = None
        with anyio.CancelScope() as scope, target.health.when_healthy(scope.cancel):
            result = await self._own.run(job)
        if result is None:
            return False
        if result.status != 0 or not has_modules(result.files):
            fault = error_line(result.stderr)
            raise TranslatorError(fault, remedy=self._own.engine.stap.explain_untested(release.name))
        seconds = round(anyio.current_time() - began, 1)
        target.log.info("release.healthy", release=release.name, seconds=seconds)
        self.findings.plan_after(job)
        return True

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
