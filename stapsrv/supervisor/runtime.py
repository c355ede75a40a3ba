"""The parts that all servers of this process share, and how a server is made ready on them."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path

import anyio
import attrs
import structlog
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.activity import Activity
from stapsrv.compile.cache.disk import RESULTS_DIRECTORY, DiskStore
from stapsrv.compile.cache.inputs import HostInputs
from stapsrv.compile.cache.result_cache import ResultCache
from stapsrv.compile.cache.stap_cache import CACHES_DIRECTORY, restrict_users_cache
from stapsrv.compile.cache.watcher import InputWatcher
from stapsrv.compile.context import CompileService
from stapsrv.compile.engine.base import EngineHost
from stapsrv.compile.engine.cached import CachedEngine
from stapsrv.compile.engine.choice import open_engine
from stapsrv.compile.engine.installed_options import InstalledOptions
from stapsrv.compile.engine.local import LocalEngine
from stapsrv.compile.engine.signing import KernelSigner
from stapsrv.compile.engine.stap import StapProgram, find_stap
from stapsrv.compile.engine.temp_quota import TempQuota
from stapsrv.compile.engine.tmpfs import find_memory_directory
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.health import ReleaseHealth
from stapsrv.compile.memory import RequestMemory
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.stats import ProcessCounters
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings, total_compiles
from stapsrv.config.tuning import NOTHING_SET, Tuning
from stapsrv.errors import ConfigError
from stapsrv.identity.certificate import systemtap_directory
from stapsrv.identity.key_types import MOK_VARIABLE, KeyType, check_certificate_kind, key_type_from
from stapsrv.identity.mok import MokStore, moks_directory
from stapsrv.identity.store import IdentityStore, open_watcher
from stapsrv.sandbox.detect import find_sandbox
from stapsrv.supervisor.activation import PassedSockets
from stapsrv.supervisor.own_compiles import OwnCompiles
from stapsrv.supervisor.script_outcomes import ScriptOutcomes
from stapsrv.supervisor.server.admission import ConnectionBudget
from stapsrv.supervisor.server.compile_server import CompileServer
from stapsrv.supervisor.server.listener import open_listeners
from stapsrv.supervisor.warmup import WarmMemory, Warmup
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.rlimits import max_connections

# For the temporary directory at the end of the process; what is left then, the next process sweeps.
_REMOVAL_S = 5.0


@attrs.frozen(kw_only=True)
class Runtime:
    """The parts that the servers of this process share; without a cache each request is compiled."""

    user: str
    engine: LocalEngine
    engines: EngineHost  # for engines on other hosts
    options: InstalledOptions
    identities: IdentityStore
    mok_kind: KeyType  # of new machine owner keys
    warmup: Warmup
    sockets: PassedSockets
    cache: ResultCache | None
    connections: ConnectionBudget  # of all servers together
    memory: RequestMemory
    signers: WorkerPool  # of modules, for kernels that want them signed
    counters: ProcessCounters = attrs.field(init=False, factory=ProcessCounters)
    activity: Activity = attrs.field(init=False, factory=Activity)
    scripts: ScriptOutcomes = attrs.field(init=False)
    # For directories, which may be on a file system that hangs.
    files: BlockingCalls = attrs.field(init=False, factory=BlockingCalls)

    @scripts.default
    def _no_outcomes(self) -> ScriptOutcomes:
        return ScriptOutcomes(self.activity.changes)

    async def prepare(
        self,
        settings: ServerSettings,
        log: Log,
        *,
        server_id: int = 0,
        last_port: int | None,
        shared: WorkerPool,
    ) -> CompileServer:
        """Make a server ready to accept: build trees, port, certificate, the local client's trust.

        A server that may choose its port gets ``last_port``, if that is free. The pool ``shared`` bounds the
        compiles of all. On failure nothing is left behind, but for a certificate that was made on the way.

        Raises:
            ConfigError: a setting cannot be served.
            IdentityError: there is no certificate, and none could be made.
        """
        self._log_sandbox(log)
        elsewhere = await open_engine(settings, self.engines)
        releases = () if elsewhere is not None else await self._look_up(settings, log)
        with contextlib.ExitStack() as undo:
            passed = self.sockets.port_of(settings)
            listeners = _open_listeners(settings, last_port) if passed is None else (passed,)
            for listener in listeners:
                undo.callback(listener.close)
            identity = await self.identities.get(settings.ssl, log)
            pool = WorkerPool(
                settings.workers,
                queue_length=settings.limits.queue_length,
                # Of this host's compiles.
                parent=shared if elsewhere is None else None,
            )
            engine = CachedEngine(self.engine, pool, self.cache, memory=self.memory.answers)
            served: Mapping[str, ServedRelease] = {release.name: release for release in releases}
            healths: Mapping[str, ReleaseHealth] = {
                release.name: self.warmup.health(settings, release, log) for release in releases
            }
            if elsewhere is not None:
                engine = CachedEngine(
                    elsewhere, pool, self.cache, memory=self.memory.answers, promise=elsewhere.promise
                )
                served, healths = elsewhere.releases, elsewhere.release_health
                elsewhere.join(pool)
            service = CompileService(
                id=server_id,
                settings=settings,
                releases=served,
                release_health=healths,
                version=self.engine.stap.version,
                options=self.options,
                engine=engine,
                elsewhere=elsewhere,
                pool=pool,
                identity=identity,
                kernel_signer=KernelSigner(
                    MokStore(moks_directory(identity.loaded.directory), log, kind=self.mok_kind),
                    self.engine.workspace,
                    self.engine.sandbox,
                    self.signers,
                ),
                log=log,
                request_memory=self.memory.requests,
                counters=self.counters,
                activity=self.activity,
            )
            if self.cache is not None and settings.limits.result_cache:
                self.cache.watch(releases, settings)
            server = CompileServer(service, listeners, budget=self.connections)
            self.counters.expect(service.releases)
            undo.pop_all()
        return server

    def _log_sandbox(self, log: Log) -> None:
        sandbox = self.engine.sandbox
        if sandbox.backend is None:
            log.warning("sandbox.off")
        else:
            log.info("sandbox.found", mechanism=sandbox.name)
        for failure in sandbox.failures:
            log.warning("sandbox.failed", failure=failure)
        if sandbox.cgroup is not None:
            log.info("sandbox.cgroup", cgroup=sandbox.cgroup)
        if self.engine.workspace.is_in_memory:
            log.info("workspace.memory", directory=self.engine.workspace.path.parent)

    async def _look_up(self, settings: ServerSettings, log: Log) -> tuple[ServedRelease, ...]:
        def look() -> tuple[tuple[ServedRelease, ...], tuple[str, ...]]:
            releases = settings.served_releases()
            _check_directories(settings)
            for release in releases:
                self.engine.check(settings, release)
            return releases, self.engine.rc_limits(settings).remarks

        try:
            releases, remarks = await self.files.run(look)
        except TimeoutError as exc:
            raise ConfigError(
                f"a build tree, or another directory of the server, cannot be looked at: {exc.strerror}",
                remedy="see which file system hangs",
            ) from exc
        for remark in remarks:
            log.warning("limits.both", both=remark)
        return releases


@contextlib.asynccontextmanager
async def open_runtime(
    environ: Mapping[str, str],
    *,
    password: str | None = None,
    sockets: PassedSockets | None = None,
    tuning: Tuning = NOTHING_SET,
    secret: tuple[Path, ...] = (),
    log: Log | None = None,
) -> AsyncIterator[Runtime]:
    """Find stap and a sandbox, and hold a workspace while the block runs.

    ``environ`` is the one that the process was started with, ``password`` that of certificate databases that
    have one. No request sees the files of ``secret``. Without a log no results are cached.

    Raises:
        ConfigError: stap is missing or too old, requests cannot be contained, there is no temporary
            directory, or ``environ`` asks for keys of a kind that cannot be used.
    """
    check_certificate_kind(environ)
    mok_kind = key_type_from(environ, MOK_VARIABLE)
    stap = await find_stap(environ)
    options = await InstalledOptions.read(stap, environ)
    workspace = Workspace.open(memory=find_memory_directory(environ, tuning))
    try:
        entry = pwd.getpwuid(os.geteuid())
        home = Path(environ.get("HOME") or entry.pw_dir)
        wanted = tuning.effective("sandbox")
        found = await find_sandbox(wanted, stap.path, environ, home=home, workspace=workspace.path)
        engine = LocalEngine(
            stap,
            found,
            workspace,
            environ=environ,
            home=home,
            secret=secret,
            temp_quota=TempQuota(tuning.effective("total_temp_bytes")),
        )
        systemtap = systemtap_directory(environ)
        with contextlib.suppress(OSError):
            await workspace.files.run(partial(restrict_users_cache, systemtap))
        async with contextlib.AsyncExitStack() as opened:
            inputs = cache = None
            if log is not None:
                inputs, cache = await _open_cache(opened, stap, environ, tuning, log)
            remembered = WarmMemory(systemtap / "warm-releases", systemtap / CACHES_DIRECTORY)
            databases = opened.enter_context(open_watcher(log))
            warmup = Warmup(OwnCompiles(engine, cache), remembered, inputs)
            services = await opened.enter_async_context(anyio.create_task_group())
            opened.callback(services.cancel_scope.cancel)
            yield Runtime(
                user=entry.pw_name,
                engine=engine,
                options=options,
                identities=IdentityStore(environ, password=password, watcher=databases),
                mok_kind=mok_kind,
                warmup=warmup,
                engines=EngineHost(
                    local=engine,
                    environ=environ,
                    log=log or structlog.get_logger(),
                    # Looked up when it is called: it is set later.
                    health_changed=lambda health: warmup.on_health_change(health),  # noqa: PLW0108
                    tasks=services,
                ),
                sockets=sockets or PassedSockets(),
                cache=cache,
                connections=ConnectionBudget(max_connections(tuning.effective("total_connections"))),
                memory=RequestMemory.of(tuning.effective("total_request_bytes")),
                signers=WorkerPool(total_compiles(tuning), queue_length=None),
            )
    finally:
        with anyio.CancelScope(shield=True), contextlib.suppress(TimeoutError):
            await workspace.files.run(workspace.close, timeout_s=_REMOVAL_S)


async def _open_cache(
    opened: contextlib.AsyncExitStack,
    stap: StapProgram,
    environ: Mapping[str, str],
    tuning: Tuning,
    log: Log,
) -> tuple[InputWatcher | None, ResultCache | None]:
    """Open the result cache, and before it the watcher of its inputs, which is of use without it, too."""
    try:
        watcher = InputWatcher(log=log)
    except OSError as exc:
        log.warning("cache.unusable", reason=exc)
        return None, None
    opened.callback(watcher.close)
    tasks = await opened.enter_async_context(anyio.create_task_group())
    opened.callback(tasks.cancel_scope.cancel)
    tasks.start_soon(watcher.run)
    systemtap = systemtap_directory(environ)
    max_bytes, max_age_s = tuning.effective("result_cache_bytes"), tuning.effective("result_cache_s")
    opening = partial(DiskStore, systemtap / RESULTS_DIRECTORY, max_bytes=max_bytes, max_age_s=max_age_s)
    try:
        store = await BlockingCalls().run(opening)
    except (ConfigError, OSError) as exc:
        log.warning("cache.unusable", reason=exc)
        return watcher, None
    inputs = HostInputs(stap, environ, systemtap, contained=str(tuning.effective("sandbox")))
    if inputs.fault is not None:
        log.warning("cache.idle", reason=inputs.fault)
    cache = ResultCache(inputs, watcher, store, log=log)
    await opened.enter_async_context(cache.open())
    return watcher, cache


def _open_listeners(settings: ServerSettings, last_port: int | None) -> tuple[socket.socket, ...]:
    addresses = settings.access.listen
    if settings.port == 0 and last_port is not None:
        with contextlib.suppress(ConfigError):
            return open_listeners(last_port, addresses)
    return open_listeners(settings.port, addresses)


def _check_directories(settings: ServerSettings) -> None:
    # stap would refuse request after request.
    named = [("-R", settings.runtime), *(("-I", directory) for directory in settings.include)]
    for option, directory in named:
        if directory is not None and not os.path.isdir(directory):  # noqa: PTH112 - never raises
            raise ConfigError(
                "is not a directory", where=f"{option} {directory}", remedy="give an existing directory"
            )
