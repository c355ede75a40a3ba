"""A node, without a word of Dask: it proves its releases, offers them, and compiles jobs.

A release is offered once the shortest script has been compiled for it. When something changes of what modules
are built with, the offer is taken back, and the release proved again: its identity may be another one. What
was being compiled meanwhile is answered with "changed", and the server tries again elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.key import CacheKey
from stapsrv.compile.cache.result_cache import Miss, ResultCache
from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.config.tuning import Tuning
from stapsrv.errors import ConfigError, ProtocolError, RequestRejected, TranslatorError
from stapsrv.farm.identity import toolchain_identity
from stapsrv.farm.job import FarmJob, decode_job
from stapsrv.farm.offer import Offer
from stapsrv.farm.result import Failure, NodeFailure, NodeResult, encode_answer
from stapsrv.identity.certificate import systemtap_directory
from stapsrv.supervisor.runtime import Runtime

# A package comes in many files; so long after the first change the release is proved again.
_SETTLE_S = 2.0
_IDENTITY_S = 120.0
_RELEASE_S = 10.0
_CHANGED = "What it is compiled with has changed"
# 0 is no limit in these; in all others it is the least.
_UNLIMITED = frozenset({"cpu_s", "memory_bytes", "file_bytes", "processes", "cores"})


@attrs.frozen
class _Offered:
    offer: Offer
    release: ServedRelease
    key: CacheKey  # of the moment when it was proved
    stale: anyio.Event = attrs.field(factory=anyio.Event)  # set when a job has seen that it does not hold


@attrs.define(eq=False)
class FarmNode:
    """A host of a farm; :meth:`run` proves and offers its releases."""

    name: str
    _runtime: Runtime
    _cache: ResultCache
    _settings: ServerSettings  # the node's own
    _releases: tuple[ServedRelease, ...]
    _environ: Mapping[str, str]
    _log: Log
    _offered: dict[tuple[str, str], _Offered] = attrs.field(init=False, factory=dict)
    _running: dict[str, anyio.CancelScope] = attrs.field(init=False, factory=dict)
    # Jobs that are here, from when their compile begins until somebody has the answer, or wants none.
    _held: set[str] = attrs.field(init=False, factory=set)
    _tasks: TaskGroup | None = attrs.field(init=False, default=None)
    # Set, and replaced, when the offers are others, and when no job is here any more.
    changed: anyio.Event = attrs.field(init=False, factory=anyio.Event)
    _idle: anyio.Event = attrs.field(init=False, factory=anyio.Event)

    @property
    def offers(self) -> frozenset[Offer]:
        """The releases that the node can compile for now."""
        return frozenset(offered.offer for offered in self._offered.values())

    @property
    def running(self) -> int:
        """The number of jobs being compiled."""
        return len(self._running)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Prove and offer the releases until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            for number, release in enumerate(self._releases):
                self._tasks.start_soon(self._follow, number, release)
            task_status.started()
            await anyio.sleep_forever()

    async def wait_idle(self) -> None:
        """Wait until no job is here: none is compiled, and all answers have been taken."""
        while self._held:
            await self._idle.wait()

    def release(self, name: str) -> None:
        """Forget a job that is of no use here any more, and end its compile if that is running."""
        scope = self._running.get(name)
        if scope is not None:
            scope.cancel()
        self._held.discard(name)
        if not self._held:
            self._idle.set()
            self._idle = anyio.Event()

    def cancel_all(self) -> None:
        """End all compiles."""
        for scope in self._running.values():
            scope.cancel()

    async def compile(self, message: object) -> bytes | None:
        """Compile a job, and return the answer; None if it was ended because nobody waits for it."""
        try:
            job = decode_job(message)
        except ProtocolError as exc:
            self._log.warning("farm.unusable", reason=str(exc))
            return encode_answer(NodeFailure.of(exc, node=self.name, failure=Failure.UNUSABLE))
        log = self._log.bind(job=job.name)
        answer: NodeResult | NodeFailure | None = None
        with anyio.CancelScope() as scope:
            self._running[job.name] = scope
            self._held.add(job.name)
            try:
                answer = await self._answer(job, log)
            finally:
                del self._running[job.name]
        return None if answer is None else encode_answer(answer)

    async def _answer(self, job: FarmJob, log: Log) -> NodeResult | NodeFailure:
        began = anyio.current_time()
        try:
            answer = await self._compile(job, log)
        except (RequestRejected, TranslatorError) as exc:
            log.warning("farm.failed", reason=str(exc))
            kind = Failure.REJECTED if isinstance(exc, RequestRejected) else Failure.TRANSLATOR
            answer = NodeFailure.of(exc, node=self.name, failure=kind)
        except Exception:
            log.exception("farm.crashed")
            fault = TranslatorError("The worker failed on this request; its log says why")
            answer = NodeFailure.of(fault, node=self.name, failure=Failure.TRANSLATOR)
        log.info(
            "farm.compiled",
            release=job.request.release,
            rc=answer.result.status if isinstance(answer, NodeResult) else None,
            failure=answer.failure.value if isinstance(answer, NodeFailure) else None,
            seconds=round(anyio.current_time() - began, 3),
        )
        return answer

    async def _compile(self, job: FarmJob, log: Log) -> NodeResult | NodeFailure:
        offered = self._offered.get((job.request.release, job.request.arch))
        if offered is None or offered.offer.identity != job.identity:
            return self._failure(Failure.CHANGED, _CHANGED)
        own = CompileJob(
            request=job.request,
            release=offered.release,
            settings=self._settings_for(job),
            table=await self._runtime.options.table_for(job.request.arguments),
            log=log,
            background=job.background,
            deadline_s=min(job.deadline_s, self._settings.limits.compile_s),
        )
        if own.privilege is not job.privilege:
            # What is signed rests on it.
            return self._failure(
                Failure.TRANSLATOR, "The worker's stap reads the options in another way than the server's"
            )
        key = await self._cache.wait_key_for(own)
        if not _is_same(key, offered.key):
            offered.stale.set()
            return self._failure(Failure.CHANGED, _CHANGED)
        miss = await self._cache.compile(key, own, self._runtime.engine)
        try:
            self._cache.close(miss)
            is_known = key.environment_digest is not None
            reason = await self._cache.judge(miss) if is_known else key.reason
            if not _is_same(await self._cache.wait_key_for(own), key):
                offered.stale.set()
                return self._failure(Failure.CHANGED, _CHANGED)
        finally:
            self._leave(miss)
        return NodeResult(
            result=miss.compiled.result, node=self.name, build=own.record.build, uncacheable=reason
        )

    def _leave(self, miss: Miss) -> None:
        """Have what a compile left behind removed; the answer does not wait for that."""
        if self._tasks is not None:
            self._tasks.start_soon(self._remove, miss)

    async def _remove(self, miss: Miss) -> None:
        try:
            with anyio.move_on_after(_RELEASE_S, shield=True):
                await miss.compiled.release()
        except Exception:  # noqa: BLE001 - it is no other job's failure
            self._log.exception("farm.untidy")

    def _failure(self, failure: Failure, problem: str) -> NodeFailure:
        return NodeFailure(failure=failure, node=self.name, problem=problem)

    def _settings_for(self, job: FarmJob) -> ServerSettings:
        """Return the settings of a job's compile: its own as far as the node allows."""
        limits = self._settings.limits
        bounded: dict[str, Any] = {
            name: _stricter(name, getattr(limits, name), asked) for name, asked in job.limits.items()
        }
        bounded["prepared"] = limits.prepared and job.prepared
        return attrs.evolve(
            self._settings,
            build=job.build,
            define=job.define,
            tuning=Tuning(bounded).over(self._settings.tuning),
        )

    async def _follow(self, number: int, release: ServedRelease) -> None:
        """Prove and offer a release, and begin again when what it is built with has changed."""
        warmup = self._runtime.warmup
        health = warmup.health(self._settings, release, self._log)
        job = CompileJob(
            request=CompileRequest(release=release.name, arch=release.arch),
            release=release,
            settings=self._settings,
            log=self._log,
            background=True,
            own=True,
        )
        while True:
            healthy = anyio.Event()
            with health.when_healthy(healthy.set):
                warmup.add(number, self._settings, [health])
                await healthy.wait()
            offered = await self._prove(job)
            if offered is not None:
                self._offered[release.name, release.arch] = offered
                self._announce()
                self._log.info("farm.offered", release=release.name, identity=offered.offer.identity[:12])
                await self._wait_stale(offered, job)
                del self._offered[release.name, release.arch]
                self._announce()
                self._log.info("farm.withdrawn", release=release.name)
            warmup.remove(number)
            await anyio.sleep(_SETTLE_S)

    async def _prove(self, job: CompileJob) -> _Offered | None:
        """Return the offer of a release that can be compiled for; None if it changes meanwhile."""
        key = await self._cache.wait_key_for(job)
        read = partial(
            toolchain_identity,
            self._runtime.engine.stap,
            job.release,
            self._settings,
            self._environ,
            systemtap=systemtap_directory(self._environ),
            contained=self._runtime.engine.sandbox.name,
        )
        try:
            identity = await self._runtime.files.run(read, timeout_s=_IDENTITY_S)
        except (ConfigError, OSError) as exc:
            self._log.warning("release.unhealthy", release=job.release.name, reason=str(exc))
            return None
        if not _is_same(await self._cache.wait_key_for(job), key):
            return None
        return _Offered(Offer(job.release.name, job.release.arch, identity), job.release, key)

    async def _wait_stale(self, offered: _Offered, job: CompileJob) -> None:
        async with anyio.create_task_group() as waiting:

            async def wait_changed() -> None:
                await self._cache.wait_changed(offered.key, job)
                offered.stale.set()

            waiting.start_soon(wait_changed)
            await offered.stale.wait()
            waiting.cancel_scope.cancel()

    def _announce(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


def _is_same(one: CacheKey, other: CacheKey) -> bool:
    """Whether nothing has changed between two keys' moments that the node can see."""
    return (one.generation, one.host_state) == (other.generation, other.host_state)


def _stricter(name: str, own: float, asked: float) -> float:
    """Return the bound of a compile of which the node's owner and the job's server each state one."""
    if name == "nice":
        return max(own, asked)
    if name in _UNLIMITED:
        return min(own or asked, asked or own)
    return min(own, asked)
