"""A compile service on loopback without a translator: for the sessions' own behaviour."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
import attrs
import structlog
import trustme

from stapsrv.compile.context import CompileService
from stapsrv.compile.engine.base import Compiled, CompileJob, CompileResult
from stapsrv.compile.engine.cached import CachedEngine
from stapsrv.compile.engine.signing import KernelSigner
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.memory import RequestMemory
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.protocol.options import STAP_4_8, OptionTable
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.identity.mok import MokStore
from stapsrv.sandbox.sandbox import Sandbox
from stapsrv.supervisor.server.admission import ConnectionBudget
from stapsrv.supervisor.server.compile_server import CompileServer
from stapsrv.supervisor.server.listener import open_listener

from .client import RELEASE


class FakeEngine:
    """Answers at once, or waits on a gate and counts what runs and what was cancelled."""

    def __init__(self) -> None:
        self.jobs: list[CompileJob] = []
        self.cancelled = 0
        self.released = 0
        self.gate: anyio.Event | None = None
        self.fault: Exception | None = None
        self.late_fault: Exception | None = None
        self.tidying: anyio.Event | None = None
        self.last_fault: Exception | None = None
        self.module = b"module" * 1000
        self.module_path = "stap000000/stap_x.ko"
        self.more_files: tuple[ResponseFile, ...] = ()
        self.dependencies: frozenset[str] = frozenset()
        self.status = 0
        self.limit_met: str | None = None
        self.stdout, self.stderr = b"out\n", b"err\n"
        self._changed = anyio.Event()

    async def compile(self, job: CompileJob) -> Compiled:
        self.jobs.append(job)
        self._note()
        if self.fault is not None:
            raise self.fault
        if self.gate is not None:
            try:
                await self.gate.wait()
            except BaseException:
                self.cancelled += 1
                self._note()
                raise
        if self.late_fault is not None:
            raise self.late_fault
        module = ResponseFile(self.module_path, self.module)
        files = (module, *self.more_files)
        result = CompileResult(self.status, self.stdout, self.stderr, files, self.limit_met)
        return Compiled(result, self._read_dependencies, self._keep_findings, self._release)

    async def _release(self) -> None:
        self.released += 1
        if self.tidying is not None:
            await self.tidying.wait()
        if self.last_fault is not None:
            raise self.last_fault

    async def _read_dependencies(self) -> frozenset[str]:
        return self.dependencies

    async def _keep_findings(self) -> None:
        raise AssertionError("no job is the server's own")

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it is checked whenever a job begins or is cancelled."""
        with anyio.fail_after(60):
            while not condition():
                await self._changed.wait()

    def _note(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class LogLines:
    """A log that is kept, and can be waited on."""

    def __init__(self) -> None:
        self.entries: list[dict[str, object]] = []
        self._changed = anyio.Event()
        self.log = structlog.wrap_logger(
            None, processors=[self._keep], wrapper_class=structlog.make_filtering_bound_logger("info")
        )

    def _keep(self, _logger: object, level: str, event: structlog.typing.EventDict) -> object:
        self.entries.append({"level": level, **event})
        self._changed.set()
        self._changed = anyio.Event()
        raise structlog.DropEvent

    def events(self) -> list[object]:
        return [entry["event"] for entry in self.entries]

    def reasons(self, event: str) -> list[str]:
        return [str(entry["reason"]) for entry in self.entries if entry["event"] == event]

    async def wait(self, event: str, count: int = 1) -> None:
        with anyio.fail_after(60):
            while self.events().count(event) < count:
                await self._changed.wait()


@attrs.frozen
class RunningServer:
    """A server that serves, and what it is made of."""

    server: CompileServer
    service: CompileService
    engine: FakeEngine
    lines: LogLines
    ended: anyio.Event
    scope: anyio.CancelScope
    """Of all that serves."""

    @property
    def port(self) -> int:
        return self.server.address.port


def tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


@attrs.frozen
class TestIdentity:
    """A certificate from nowhere, for as long as the tests run; its signatures only tell whose they are."""

    __test__ = False
    context: ssl.SSLContext
    not_after: datetime
    name: bytes = b"server"
    serial: str = "06:73:6e:3d:41"
    sha256: str = "AB:CD"

    def sign(self, module: bytes) -> bytes:
        return b"%s signed %s" % (self.name, hashlib.sha256(module).hexdigest().encode())


class KnownOptions:
    """The options of SystemTap 4.8, without asking one."""

    async def table_for(self, _arguments: Sequence[bytes]) -> OptionTable:
        return STAP_4_8


@attrs.define
class Shown:
    """Who a server is, until a test says otherwise."""

    loaded: TestIdentity

    async def current(self) -> TestIdentity:
        return self.loaded


IDENTITY = TestIdentity(tls_context(), datetime(2100, 1, 1, tzinfo=UTC))

# Nothing can be made there.
NO_MOKS = Path("/dev/null/moks")
NO_WORKSPACE = Workspace(Path("/dev/null"), -1)


@contextlib.asynccontextmanager
async def running_server(
    *,
    max_threads: int = 2,
    max_request_bytes: int = 50_000,
    identity: TestIdentity | Shown = IDENTITY,
    build_tree: Path = Path("/nowhere"),
    moks: Path = NO_MOKS,
    workspace: Workspace = NO_WORKSPACE,
    most_connections: int = 1000,
    memory: RequestMemory | None = None,
    **limits: float,
) -> AsyncIterator[RunningServer]:
    """Serve until the block ends; the limits given differ from the defaults.

    Args:
        max_threads: as of a server.
        max_request_bytes: the same.
        identity: who it is.
        build_tree: of the release that it serves; only ``scripts/sign-file`` is of use.
        moks: the directory of machine owner keys.
        workspace: needed to sign with one.
        most_connections: to all servers together.
        memory: of all servers together.
        limits: those that differ from the defaults.
    """
    settings = ServerSettings(max_threads=max_threads, max_request_bytes=max_request_bytes, tuning=limits)
    engine, lines, memory = FakeEngine(), LogLines(), memory or RequestMemory.of(1 << 30)
    pool = WorkerPool(settings.workers, queue_length=settings.limits.queue_length)
    service = CompileService(
        settings=settings,
        releases={RELEASE: ServedRelease(RELEASE, "x86_64", RELEASE, build_tree)},
        version="4.8",
        options=KnownOptions(),
        engine=CachedEngine(engine, pool, memory=memory.answers),
        request_memory=memory.requests,
        pool=pool,
        identity=identity if isinstance(identity, Shown) else Shown(identity),
        kernel_signer=KernelSigner(
            MokStore(moks, lines.log), workspace, Sandbox(None), WorkerPool(1, queue_length=None)
        ),
        log=lines.log,
    )
    server = CompileServer(service, [open_listener(0)], budget=ConnectionBudget(most_connections))
    running = RunningServer(server, service, engine, lines, anyio.Event(), anyio.CancelScope())

    async def serve(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with running.scope:
            await server.serve(task_status=task_status)
        running.ended.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve)
            yield running
            tasks.cancel_scope.cancel()
