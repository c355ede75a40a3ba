"""The engine that has requests compiled by a farm: the nodes of a Dask scheduler (docs/farm.md).

Everything that clients see stays here. A job goes to a node whose toolchain has the identity that was
promised for it; what it answers is checked as the output of a compile of this host is. Where there is no farm
for a while, requests wait, are compiled here, or are refused, as the server's settings say.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import attrs
from anyio.abc import TaskStatus
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.engine.base import (
    Compiled,
    CompileJob,
    Elsewhere,
    Engine,
    EngineHost,
    EngineStatus,
)
from stapsrv.compile.health import Health, ReleaseHealth
from stapsrv.compile.pool import WorkerPool
from stapsrv.config.addresses import parse_farm_address
from stapsrv.config.configured import EACH_RELEASE
from stapsrv.config.kernels import MODULES, ServedRelease, host_arch, installed_releases, is_release_name
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError, ProtocolError, TranslatorError
from stapsrv.farm.client import Assignment, FarmAbsentError, FarmAnswer, FarmClient
from stapsrv.farm.dask_logs import dask_logs_to
from stapsrv.farm.job import FarmJob, encode_job
from stapsrv.farm.offer import Nodes
from stapsrv.farm.result import NodeFailure, decode_answer
from stapsrv.farm.security import FarmCredentials, farm_security
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.loop_thread import LoopThread

_RESTART_S = 5.0
# For the first answer of a farm, when a server begins that serves all that the farm does.
_FIRST_LOOK_S = 5.0
_WAIT, _LOCAL = "wait", "local"


async def open_engine(settings: ServerSettings, host: EngineHost) -> DaskEngine:
    """Return the engine of a server; servers of one farm share its connection.

    Raises:
        ConfigError: the settings do not say where the farm is, or name a release by its build tree.
    """
    address, credentials = connection_of(settings)
    # Here, where the user who starts the server reads what is wrong with them.
    await BlockingCalls().run(partial(farm_security, credentials, address=address))
    if settings.releases == (EACH_RELEASE,):
        settings = attrs.evolve(settings, releases=())
    for release in settings.releases:
        if not is_release_name(release):
            remedy = "name the release: the farm's workers have build trees of their own"
            raise ConfigError("is a path of this host", where=f"-r {release}", remedy=remedy)
    make = partial(Farm, address, credentials, host.log)
    farm = await host.shared((Farm, address, credentials), make)
    if settings.releases:
        return DaskEngine(farm, settings, host)
    is_fallback = settings.compilation.farm_fallback == _LOCAL
    installed = await BlockingCalls().run(installed_releases) if is_fallback else ()
    with anyio.move_on_after(_FIRST_LOOK_S):
        await farm.looked.wait()
    return DaskEngine(farm, settings, host, installed=installed)


def connection_of(settings: ServerSettings) -> tuple[str, FarmCredentials | None]:
    """Return where the farm of a server is, and what it is reached with; a ConfigError if they do not say."""
    wanted = settings.compilation
    if wanted.farm is None:
        remedy = "set FARM to the address of its scheduler, such as tls://farm.example.com:8786"
        raise ConfigError("there is no farm", where="ENGINE=dask", remedy=remedy)
    files = {"FARM_CA": wanted.farm_ca, "FARM_CERT": wanted.farm_cert, "FARM_KEY": wanted.farm_key}
    if not parse_farm_address(wanted.farm).is_encrypted:
        return wanted.farm, None
    missing = [variable for variable, file in files.items() if file is None]
    if missing:
        remedy = "stap-farm ca makes the files; or name a scheduler on this host, tcp://127.0.0.1:PORT"
        raise ConfigError(f"{' and '.join(missing)} are not set", where=f"FARM={wanted.farm}", remedy=remedy)
    return wanted.farm, FarmCredentials(*(Path(file) for file in files.values() if file is not None))


class Farm:
    """The connection of this process to a farm, in a thread of its own."""

    def __init__(self, address: str, credentials: FarmCredentials | None, log: Log) -> None:
        self._make = partial(FarmClient, address, credentials, log)
        self._client: FarmClient | None = None
        self._log = log
        self._thread: LoopThread | None = None
        # Called in the servers' loop after each change of the nodes, as long as their engines live.
        self._listeners: list[weakref.WeakMethod[Callable[[], float]]] = []
        self._moved = anyio.Event()
        self.looked = anyio.Event()  # set once the farm is known, or known to be away

    @property
    def nodes(self) -> Nodes:
        """The nodes of now; none while the farm cannot be reached."""
        return Nodes() if self._client is None else self._client.nodes

    @property
    def is_connected(self) -> bool:
        """Whether the scheduler is reached."""
        return self._client is not None and self._client.is_connected

    def status(self) -> EngineStatus | None:
        """Return what there is to see of the farm (see :class:`RemoteEngine`); None when it is closed."""
        client = self._client
        if client is None:
            return None
        nodes = client.nodes
        return EngineStatus(
            name="dask",
            address=client.address,
            connected=client.is_connected,
            since=client.since,
            reason=client.fault,
            workers=len(nodes.nodes),
            slots=nodes.slots,
            releases=tuple(f"{release} {arch}" for release, arch in nodes.releases),
            running=client.running,
            waiting=max(0, client.counts.under_way - client.running),
            retries=client.counts.retries,
            lost_workers=client.counts.lost_nodes,
        )

    def listen(self, listener: Callable[[], float]) -> None:
        """Call a method now, and after each change of the nodes, until its object is gone.

        It returns in how many seconds it wants to be called in any case.
        """
        self._listeners.append(weakref.WeakMethod(listener))
        listener()
        self._moved.set()
        self._moved = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Be connected to the farm, or try to be, until cancelled."""
        with dask_logs_to(self._log):
            async with LoopThread.open("farm") as thread, anyio.create_task_group() as tasks:
                client = await thread.call(self._begin)
                client.on_change = lambda: thread.post(self._changed)
                self._client, self._thread = client, thread
                tasks.start_soon(self._tell)
                task_status.started()
                try:
                    while True:
                        await self._be_client(client, thread)
                finally:
                    self._client = self._thread = None

    async def compile(self, job: Assignment) -> FarmAnswer:
        """Have a job compiled (see :meth:`FarmClient.compile`)."""
        if self._client is None or self._thread is None:
            raise FarmAbsentError("The server is stopping")
        return await self._thread.call(partial(self._client.compile, job))

    async def _begin(self) -> FarmClient:
        # In the thread: what it waits for is of its own loop.
        return self._make()

    async def _be_client(self, client: FarmClient, thread: LoopThread) -> None:
        try:
            await thread.call(client.run)
        except Exception:  # noqa: BLE001 - servers of other engines go on
            self._log.exception("farm.crashed")
        await anyio.sleep(_RESTART_S)

    def _changed(self) -> None:
        self.looked.set()
        self._moved.set()
        self._moved = anyio.Event()

    async def _tell(self) -> None:
        while True:
            moved = self._moved
            methods = [method for listener in self._listeners if (method := listener()) is not None]
            self._listeners = [listener for listener in self._listeners if listener() is not None]
            with anyio.move_on_after(min((method() for method in methods), default=math.inf)):
                del methods
                await moved.wait()


class DaskEngine:
    """The engine of one server."""

    def __init__(
        self, farm: Farm, settings: ServerSettings, host: EngineHost, *, installed: Sequence[str] = ()
    ) -> None:
        """Compile for the releases that the settings name, else for the farm's and those ``installed``."""
        self._farm = farm
        self._local: Engine = host.local
        self._wanted = settings.compilation
        self._max_threads = settings.max_threads
        self._health_changed = host.health_changed
        self._arch = settings.arch or host_arch()
        self._pools: list[WorkerPool] = []
        self.releases: dict[str, ServedRelease] = {}
        self.release_health: dict[str, ReleaseHealth] = {}
        self._serves_all = not settings.releases
        self._missing: dict[str, float] = {}  # since when nobody offers them
        for name in settings.releases or installed:
            self._add(name)
        farm.listen(self._follow)

    def join(self, pool: WorkerPool) -> None:
        """Keep a pool as large as the farm has slots, unless the settings name a number."""
        if self._max_threads is None:
            self._pools.append(pool)
            self._follow()

    def status(self) -> EngineStatus | None:
        """Return what there is to see of the farm (see :class:`RemoteEngine`)."""
        return self._farm.status()

    def promise(self, job: CompileJob) -> bytes | None:
        """Return the identity of the offer that has the most slots (see :class:`RemoteEngine`)."""
        offer = self._farm.nodes.best(job.release.name, job.release.arch)
        if offer is not None:
            return bytes.fromhex(offer.identity)
        return None if self._falls_back(job.release) else b""

    async def compile(self, job: CompileJob) -> Compiled:
        """Compile a job on the farm (see :class:`Engine`), or here where the settings say so."""
        if not job.elsewhere and self.promise(job) is None:
            return await self._local.compile(job)
        identity = job.toolchain.hex() if job.elsewhere and job.toolchain else None
        assignment = Assignment(
            release=job.release.name,
            arch=job.release.arch,
            identity=identity,
            wait_s=self._wait_s,
            background=job.background,
            encode=lambda name, found: encode_job(FarmJob.of(job, name=name, identity=found)),
            decode=lambda message: decode_answer(message, job.settings.limits),
        )
        try:
            found = await self._farm.compile(assignment)
        except FarmAbsentError as exc:
            if self._falls_back(job.release):
                return await self._local.compile(attrs.evolve(job, toolchain=b"", elsewhere=False))
            raise TranslatorError(str(exc), remedy="try again later") from exc
        except ProtocolError as exc:
            job.log.error("farm.malformed", reason=str(exc))
            raise TranslatorError("A worker of the farm gave no answer that can be read") from exc
        answer = found.answer
        job.record.worker = answer.node
        if isinstance(answer, NodeFailure):
            raise answer.error()
        job.record.build = answer.build
        elsewhere = Elsewhere(bytes.fromhex(found.offer.identity), answer.uncacheable)
        return Compiled(answer.result, _no_files, _nothing, _nothing, elsewhere)

    def _falls_back(self, release: ServedRelease) -> bool:
        """Whether what the farm cannot compile now is compiled here."""
        return self._wanted.farm_fallback == _LOCAL and release.build_tree.is_dir()

    @property
    def _wait_s(self) -> float:
        return self._wanted.farm_wait_s if self._wanted.farm_fallback == _WAIT else 0.0

    def _add(self, name: str) -> None:
        self.releases[name] = ServedRelease(name, self._arch, name, MODULES / name / "build")
        self.release_health[name] = ReleaseHealth(self._health_changed)

    def _follow(self) -> float:
        """Follow what the farm offers; returns how many seconds later to look again."""
        nodes = self._farm.nodes
        for name, arch in nodes.releases if self._serves_all else ():
            if arch == self._arch and name not in self.releases:
                self._add(name)
        left = [self._judge(release, nodes) for release in list(self.releases.values())]
        if nodes.slots:
            for pool in self._pools:
                pool.resize(nodes.slots)
        return min(left, default=math.inf)

    def _judge(self, release: ServedRelease, nodes: Nodes) -> float:
        """Bring the health of a release up to date; returns for how many seconds that may hold.

        As long as requests wait for a farm that is lost, its releases are advertised; and one that only a
        farm's workers know is served as long as requests would wait for those that had it.
        """
        health, now = self.release_health[release.name], anyio.current_time()
        if nodes.best(release.name, release.arch) is not None:
            self._missing.pop(release.name, None)
            health.set(Health.HEALTHY)
            return math.inf
        left_s = self._missing.setdefault(release.name, now) + self._wait_s - now
        if self._falls_back(release):
            health.set(Health.UNTRIED)
        elif self._farm.is_connected:
            health.set(Health.UNHEALTHY, nodes.explain_missing(release.name))
            if self._serves_all and left_s <= 0:
                del self.releases[release.name], self.release_health[release.name]
        elif left_s <= 0 or health.health is not Health.HEALTHY:
            health.set(Health.UNHEALTHY, "The farm cannot be reached")
        return left_s if left_s > 0 else math.inf


async def _no_files() -> frozenset[str]:
    return frozenset()


async def _nothing() -> None:
    """Have nothing to do: the node has removed what its compile left behind."""
