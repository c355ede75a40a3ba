"""A node of a farm: offers the releases that it can compile for, and compiles for the servers of the farm.

Dask's worker speaks for it. When the scheduler ends, so does the worker, and another is begun: the node keeps
what it has proved.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import dask
from distributed import Worker
from distributed.comm.core import connect
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.kernels import ServedRelease, host_arch, installed_releases, resolve_release
from stapsrv.config.settings import ServerSettings
from stapsrv.config.tuning import NOTHING_SET, Tuning
from stapsrv.errors import ConfigError, first_error
from stapsrv.farm.census import FACTS, own_facts
from stapsrv.farm.node import FarmNode
from stapsrv.farm.offer import TOPIC
from stapsrv.farm.pem_files import read_certificate
from stapsrv.farm.security import FarmCredentials, farm_security
from stapsrv.farm.task import NodePlugin
from stapsrv.supervisor.runtime import Runtime, open_runtime
from stapsrv.system.blocking import BlockingCalls

_CONNECT_S = 10.0
_START_S = 30.0
_SEND_S = 10.0
_CLOSE_S = 10.0
_FIRST_DELAY_S, _MAX_DELAY_S = 0.5, 10.0
_NOWHERE = "127.0.0.1:0"
_LOOPBACK = ("127.", "[::1]", "localhost")
_SETTINGS: dict[str, Any] = {
    # A scheduler that is cut off is missed after so long.
    "distributed.comm.timeouts.tcp": "15s",
    "distributed.comm.timeouts.connect": f"{_CONNECT_S:g}s",
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    # All that runs what it is sent, but for jobs.
    "distributed.worker.blocked-handlers": [
        *("run", "run_coroutine", "upload_file", "plugin-add", "plugin-remove", "update_data"),
        *("actor_execute", "actor_attribute", "benchmark_disk", "benchmark_memory", "benchmark_network"),
    ],
}


@attrs.frozen(kw_only=True)
class WorkerOptions:
    """The options that a node is started with.

    What is a path of this host is the node's own setting, never a job's; so are the limits of ``tuning``,
    which bound those that jobs state.
    """

    scheduler: str  # tls://HOST:PORT, or tcp:// at a loopback address
    credentials: FarmCredentials | None = None  # None for tcp:// alone
    name: str | None = None  # unique in the farm; by default made of the host's name and the process id
    slots: int | None = None  # compiles at the same time; by default one for each core
    port: int = 0  # where the scheduler connects to the node; 0: one that the kernel picks
    releases: tuple[str, ...] = ()  # or absolute build trees; by default all that are installed
    include: tuple[str, ...] = ()  # further directories with tapsets
    runtime: str | None = None  # SystemTap's runtime, if another than the installed one
    tuning: Tuning = NOTHING_SET
    environ: Mapping[str, str]  # that this program was started with, for stap


async def run_worker(options: WorkerOptions, *, log: Log) -> None:
    """Offer this host's releases to a farm, and compile, until cancelled; on asyncio.

    Raises:
        ConfigError: stap, a release, the scheduler's address or the credentials cannot be used.

    Cancellation: no new job is taken; what runs has the time of ``DRAIN_TIMEOUT``, then it is given back.
    """
    stopping = anyio.Event()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_be_node, options, stopping, log)
            try:
                await anyio.sleep_forever()
            finally:
                stopping.set()
    except* ConfigError as group:
        raise first_error(group) from group


async def _be_node(options: WorkerOptions, stopping: anyio.Event, log: Log) -> None:
    """Serve until told to stop, and come to an end that is bounded; nothing of it is cancelled before."""
    # Its releases are proved whatever is set for servers, and their results judged for the servers' caches.
    tuning = Tuning({"warmup": True, "result_cache": True}).over(options.tuning)
    # Without an architecture, as most servers are: what this host's servers found out serves the node, too.
    settings = ServerSettings(
        releases=options.releases,
        include=options.include,
        runtime=options.runtime,
        tuning=tuning.of_servers(),
    )
    secret = () if options.credentials is None else (options.credentials.key,)
    with anyio.CancelScope(shield=True):
        async with open_runtime(options.environ, tuning=tuning, secret=secret, log=log) as runtime:
            if runtime.cache is None:
                raise ConfigError("changes of its inputs cannot be followed", where="the result cache")
            releases = await BlockingCalls().run(partial(_find_releases, settings, runtime))
            node = FarmNode(
                options.name or f"{os.uname().nodename}-{os.getpid()}",
                runtime,
                runtime.cache,
                settings,
                releases,
                options.environ,
                log,
            )
            async with anyio.create_task_group() as tasks:
                await tasks.start(runtime.warmup.run)
                await tasks.start(node.run)
                with dask.config.set(_SETTINGS):
                    await _FarmWorker(options, settings, node, log).run(stopping)
                tasks.cancel_scope.cancel()


def _find_releases(settings: ServerSettings, runtime: Runtime) -> tuple[ServedRelease, ...]:
    """Find the build trees; a ConfigError if one is missing, or there is none."""
    wanted = settings.releases or tuple(installed_releases())
    if not wanted:
        raise ConfigError("there is no /lib/modules/RELEASE/build", remedy="install kernel headers")
    releases = tuple(resolve_release(name, arch=host_arch()) for name in wanted)
    for release in releases:
        runtime.engine.check(settings, release)
    return releases


@attrs.frozen
class _FarmWorker:
    """The Dask workers that speak for a node, one after the other."""

    _options: WorkerOptions
    _settings: ServerSettings
    _node: FarmNode
    _log: Log

    async def run(self, stopping: anyio.Event) -> None:
        """Serve the farm's scheduler, and the next one where that ends, until told to stop."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._serve_all)
            await stopping.wait()
            tasks.cancel_scope.cancel()

    async def _serve_all(self) -> None:
        delay_s, fault = _FIRST_DELAY_S, ""
        while True:
            try:
                await self._check_reachable()
                async with self._worker() as worker:
                    delay_s, fault = _FIRST_DELAY_S, ""
                    self._log.info("farm.joined", scheduler=self._options.scheduler, node=self._node.name)
                    await self._serve(worker)
                self._log.warning("farm.lost", scheduler=self._options.scheduler)
            except (OSError, RuntimeError, ValueError) as exc:
                # Dask says that it did not start, and why below.
                reason = str(exc.__cause__ or exc)
                if reason != fault:
                    fault = reason
                    self._log.warning("farm.unreachable", scheduler=self._options.scheduler, reason=fault)
            await anyio.sleep(delay_s)
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    async def _check_reachable(self) -> None:
        # Dask's worker tries for ever, and says only that it does.
        address = self._options.scheduler
        security = farm_security(self._options.credentials, address=address)
        comm = await connect(address, timeout=_CONNECT_S, **security.get_connection_args("worker"))
        # Its close would wait for the peer.
        comm.abort()

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[Worker]:
        """A worker that the scheduler knows; at the end it has none of the node's jobs any more."""
        scheduler = self._options.scheduler
        host = scheduler.partition("://")[2].rpartition(":")[0]
        credentials = self._options.credentials
        until = None if credentials is None else read_certificate(credentials.cert).not_valid_after_utc
        with tempfile.TemporaryDirectory(prefix="stap-farm.") as scratch:
            worker = Worker(
                scheduler,
                nthreads=self._slots,
                name=self._node.name,
                host=host if host.startswith(_LOOPBACK) else None,
                port=self._options.port,
                security=farm_security(self._options.credentials, address=scheduler),
                memory_limit=0,
                resources=self._resources({}),
                local_directory=str(Path(scratch)),
                dashboard=False,
                dashboard_address=_NOWHERE,
                plugins=(NodePlugin(self._node),),
                metrics={FACTS: lambda _worker: own_facts(until)},
            )
            try:
                with anyio.fail_after(_START_S):
                    await worker
                worker.http_server.stop()
                yield worker
            finally:
                with anyio.CancelScope(shield=True):
                    await self._leave(worker)

    async def _serve(self, worker: Worker) -> None:
        """Tell of the node's offers until the worker ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._publish, worker)
            await worker.finished()
            tasks.cancel_scope.cancel()

    async def _publish(self, worker: Worker) -> None:
        while True:
            changed = self._node.changed
            with anyio.fail_after(_SEND_S):
                await worker.set_resources(**self._resources(worker.state.total_resources))
            worker.log_event(TOPIC, {"node": self._node.name})
            await changed.wait()

    def _resources(self, offered: Mapping[str, float]) -> dict[str, float]:
        """Return Dask's resources for the offers of now; ``offered`` ones that are gone have none left."""
        now: dict[str, float] = {offer.resource: self._slots for offer in self._node.offers}
        return dict.fromkeys(offered, 0) | now

    @property
    def _slots(self) -> int:
        return self._options.slots or self._settings.workers

    async def _leave(self, worker: Worker) -> None:
        """Take no new jobs, let those that run come to their end in time, and give the others back."""
        if worker.status.name == "running":
            await self._retire(worker, remove=False)
            self._log.info("farm.leaving", running=self._node.running)
            with anyio.move_on_after(self._settings.limits.drain_s):
                await self._node.wait_idle()
        self._node.cancel_all()
        if worker.status.name == "closing_gracefully":
            await self._retire(worker, remove=True)
        with contextlib.suppress(OSError, RuntimeError), anyio.move_on_after(_CLOSE_S):
            await worker.close(timeout=_CLOSE_S, nanny=False, reason="the node ends")

    async def _retire(self, worker: Worker, *, remove: bool) -> None:
        """Have the scheduler give the worker no new jobs, or, with ``remove``, its last ones to others."""
        with contextlib.suppress(OSError, RuntimeError), anyio.move_on_after(_SEND_S):
            await worker.scheduler.retire_workers(
                workers=[worker.address], close_workers=False, remove=remove
            )
            worker.log_event(TOPIC, {"node": self._node.name})
