"""The protocol of engines: a job goes in, a result comes out, both made of bytes.

:class:`~stapsrv.compile.engine.cached.CachedEngine` wraps :class:`~stapsrv.compile.engine.local.LocalEngine`,
which runs stap on this host. An engine on other hosts can take its place: sessions, queue, cache and signing
stay on this side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from datetime import datetime
from typing import Protocol, TypeAlias, TypeVar, cast

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.health import ReleaseHealth
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.protocol.options import (
    STAP_4_8,
    OptionTable,
    ParsedOptions,
    Privilege,
    parse_options,
    requested_privilege,
    without_option,
)
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.compile.stats import RequestRecord
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings


@attrs.frozen(kw_only=True)
class CompileJob:
    """One request, the release that it is compiled for, and the options of the server that it came to."""

    request: CompileRequest
    release: ServedRelease
    settings: ServerSettings
    log: Log = attrs.field(eq=False, repr=False)
    table: OptionTable = STAP_4_8  # the options of the stap that compiles it
    client: str = ""  # whose turn in the queue it takes
    # The engines add durations and the source of the answer.
    record: RequestRecord = attrs.field(factory=RequestRecord, eq=False, repr=False)
    # Set when the client has its answer.
    answered: anyio.Event = attrs.field(factory=anyio.Event, eq=False, repr=False)
    background: bool = False  # run at low priority, without a worker, and not counted: no client waits for it
    own: bool = False  # a script of the server's own: what stap finds out for it is kept
    makes_plan: bool = False  # one of those whose build is a plan for others
    toolchain: bytes = b""  # digest of what modules are built with; empty where that is not watched
    elsewhere: bool = False  # the toolchain is that of other hosts
    deadline_s: float = attrs.field(
        default=attrs.Factory(lambda self: self.settings.limits.compile_s, takes_self=True)
    )

    @property
    def privilege(self) -> Privilege | None:
        """The privilege that stap is held to; None where nothing may be signed."""
        return requested_privilege(self.request.arguments, self.table)

    @property
    def keyed_request(self) -> CompileRequest:
        """The request without a ``-r`` of the release that stap compiles for anyway."""
        release, name = self.release, self.release.name.encode()
        named = {value for option, value in self.options.options if option == "r"}
        # The client's goes before the build tree that the operator gave, and the last of several before all.
        if release.argument != release.name or named != {name}:
            return self.request
        arguments = without_option(self.request.arguments, b"-r" + name, self.table)
        return attrs.evolve(self.request, arguments=arguments)

    @property
    def options(self) -> ParsedOptions:
        """The client's arguments, as stap reads them."""
        return parse_options(self.request.arguments, self.table)


@attrs.frozen
class CompileResult:
    """The result of a job, without this host's private paths; it may answer later requests, too."""

    status: int  # 128 + N when signal N ended stap, as a shell says it
    stdout: bytes
    stderr: bytes
    files: tuple[ResponseFile, ...]
    limit_met: str | None = None  # the resource limit that stap met, as far as its end shows one
    hidden_paths: tuple[str, ...] = ()  # what the request names and stap, which failed, was not shown

    @property
    def succeeded(self) -> bool:
        """Whether stap did all that it was asked, and met no limit on the way."""
        return self.status == 0 and self.limit_met is None


@attrs.frozen
class Elsewhere:
    """Another host's words about a compile of its own."""

    toolchain: bytes  # the digest of what the module was built with
    uncacheable: str | None  # why the result is good for one request alone, in a word


@attrs.frozen
class Compiled:
    """A compile that has ended; what it left behind stays until it is released."""

    result: CompileResult
    # Returns the files that the module was built from; an OSError if their list cannot be read.
    read_dependencies: Callable[[], Awaitable[frozenset[str]]]
    # Keeps what stap found out about the toolchain for all later compiles; only for a script of the server's.
    keep_findings: Callable[[], Awaitable[None]]
    # Removes what the compile left behind; to be awaited exactly once.
    release: Callable[[], Awaitable[None]]
    elsewhere: Elsewhere | None = None  # None for a compile of this host

    async def finish(self, *, keep: Callable[[], bool]) -> CompileResult:
        """End a compile of the server's own, whose findings stay if it succeeded and ``keep`` says so."""
        try:
            if self.result.succeeded and keep():
                await self.keep_findings()
        finally:
            await self.release()
        return self.result


class Engine(Protocol):
    """Somewhere to compile."""

    async def compile(self, job: CompileJob) -> Compiled:
        """Compile ``job``, or raise a TranslatorError, or RequestRejected where no worker was free for it.

        Cancellation: nothing of the compile is left running, or on disk.
        """


@attrs.frozen(kw_only=True)
class EngineStatus:
    """The hosts that compile for a server, at one moment; what is counted is counted for this process."""

    name: str  # of the engine, as ``ENGINE`` has it
    address: str  # where the one is reached who knows those hosts
    connected: bool
    since: datetime  # when it was reached, or lost
    reason: str | None = None  # why it is not reached, as far as that is known
    workers: int = 0  # those hosts
    slots: int = 0  # compiles at the same time
    releases: tuple[str, ...] = ()  # all that can be compiled for now, each with its architecture
    running: int = 0  # jobs that were given away and are not done
    waiting: int = 0  # jobs that could not be given away yet
    retries: int = 0
    lost_workers: int = 0  # that ended without a word


class RemoteEngine(Engine, Protocol):
    """An engine that compiles on other hosts, whose toolchains this one's result cache does not see.

    Engines from outside of this package are found by the entry points of the group ``stapsrv.engines``: by
    their name, which ``ENGINE`` has, an :data:`EngineFactory`.
    """

    @property
    def releases(self) -> Mapping[str, ServedRelease]:
        """The releases that it compiles for, by name: those that settings name, else all; it may change."""

    @property
    def release_health(self) -> Mapping[str, ReleaseHealth]:
        """The health of each release; it may change, too."""

    def promise(self, job: CompileJob) -> bytes | None:
        """Return a digest of what a job would be compiled with.

        It is empty where that is not known: then the result is not cached. None: it would be compiled here.
        """

    def join(self, pool: WorkerPool) -> None:
        """Keep a server's pool as large as there are compiles at the same time, unless its settings say."""

    def status(self) -> EngineStatus | None:
        """Return what status and metrics tell of its hosts; None for nothing."""


class EngineService(Protocol):
    """A service that engines of one process share, such as a connection."""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve them until cancelled."""


_Service = TypeVar("_Service", bound=EngineService)


@attrs.frozen(kw_only=True)
class EngineHost:
    """The means that this process has for engines."""

    local: Engine
    environ: Mapping[str, str]
    log: Log
    health_changed: Callable[[ReleaseHealth], None]  # to be called after each change of a health
    _tasks: TaskGroup
    _services: dict[Hashable, EngineService] = attrs.field(factory=dict, init=False)

    async def shared(self, key: Hashable, make: Callable[[], _Service]) -> _Service:
        """Return the service of a key, which is made and run when it is first asked for."""
        service = self._services.get(key)
        if service is None:
            made = self._services[key] = make()
            await self._tasks.start(made.run)
            return made
        return cast("_Service", service)


EngineFactory: TypeAlias = Callable[[ServerSettings, EngineHost], Awaitable[RemoteEngine]]
