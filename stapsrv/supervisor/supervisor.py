"""The set of hosted servers: start, stop, restart, drain, reload, resume, status.

Every server lives in tasks of its own under this object's task group, and its failures stay there
(:mod:`stapsrv.supervisor.managed_server`). Commands take effect at once and are then waited for, so a caller
who stops waiting changes nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus
from structlog.typing import FilteringBoundLogger as Log

from stapsrv import __version__
from stapsrv.compile.health import ReleaseHealth
from stapsrv.compile.pool import WorkerPool
from stapsrv.config.kinds import LogFormat
from stapsrv.config.settings import HostDefaults, ServerSettings
from stapsrv.errors import ConfigError, LifecycleError
from stapsrv.supervisor.advertise import ServerAdvertiser
from stapsrv.supervisor.lifecycle import RUNNING, SETTLED, Event, State, Wanted
from stapsrv.supervisor.managed_server import ManagedServer
from stapsrv.supervisor.operations import CommandsUnderWay, Outcome, Report, ServerSpec
from stapsrv.supervisor.runtime import Runtime
from stapsrv.supervisor.server.compile_server import CompileServer
from stapsrv.supervisor.state.ports import PortMemory
from stapsrv.supervisor.state.stat_files import StatFiles
from stapsrv.supervisor.status import SupervisorStatus
from stapsrv.system.blocking import BlockingCalls


@attrs.frozen
class SavedState:
    """A supervisor's state on disk: the servers that are up, and the ports that they got at random."""

    servers: StatFiles
    ports: PortMemory


@attrs.define(eq=False)
class Supervisor:
    """Hosts servers; made for one run, which with ``auto_end`` is over when the last server is gone."""

    _runtime: Runtime
    _saved: SavedState | None  # None for one server, which is named by this process and recorded nowhere
    _defaults: HostDefaults = attrs.field(kw_only=True)
    _open_log: Callable[[Path, LogFormat | None], Log] = attrs.field(kw_only=True)
    _log: Log = attrs.field(kw_only=True)
    _max_compiles: int = attrs.field(kw_only=True)
    _auto_end: bool = attrs.field(kw_only=True)
    _advertiser: ServerAdvertiser = attrs.field(kw_only=True)
    _since: datetime = attrs.field(init=False, factory=lambda: datetime.now(UTC))
    _pool: WorkerPool = attrs.field(init=False)
    _servers: dict[int, ManagedServer] = attrs.field(init=False, factory=dict)
    _tasks: TaskGroup = attrs.field(init=False)  # while it runs
    _commands: CommandsUnderWay = attrs.field(init=False)
    # Why configured servers are not hosted, by their files.
    refused: dict[str, str] = attrs.field(init=False, factory=dict)
    # A file system that hangs under one log concerns no other file.
    _log_files: BlockingCalls = attrs.field(init=False, factory=BlockingCalls)
    _ending: anyio.Event = attrs.field(init=False, factory=anyio.Event)

    def __attrs_post_init__(self) -> None:
        # Its clients are the servers' pools, whose workers bound what can wait here.
        self._pool = WorkerPool(self._max_compiles, queue_length=None)
        self._commands = CommandsUnderWay(self._command_ended)
        self._runtime.warmup.on_health_change = self._health_changed

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Host servers until :meth:`end`, or the last is gone with ``auto_end``; then stop all.

        Cancellation: every server and every compile is ended before this returns.
        """
        async with anyio.create_task_group() as self._tasks, anyio.create_task_group() as background:
            if self._saved is not None:
                await background.start(self._saved.ports.run)
            background.start_soon(self._advertiser.run)
            await background.start(self._runtime.warmup.run)
            task_status.started()
            await self._ending.wait()
            await self.stop(list(self._servers))
            background.cancel_scope.cancel()

    def end(self) -> None:
        """Let :meth:`run` stop all servers and return."""
        self._ending.set()

    def end_if_unused(self) -> None:
        """End if nothing is hosted and no command is under way."""
        if not self._commands and not self._servers:
            self._ending.set()

    def status(self) -> SupervisorStatus:
        """Return a snapshot of everything."""
        compiles = self._pool.statistics()
        sandbox = self._runtime.engine.sandbox
        return SupervisorStatus(
            pid=os.getpid(),
            user=self._runtime.user,
            version=__version__,
            stap_version=self._runtime.engine.stap.version,
            sandbox=sandbox.name,
            sandbox_failures=sandbox.failures,
            containment=sandbox.containment.value,
            cgroup=sandbox.cgroup,
            since=self._since,
            compiles=compiles.running,
            max_compiles=compiles.workers,
            refused=tuple(self.refused.values()),
            scripts=self._runtime.scripts.counts,
            new_releases=self._runtime.scripts.arrived,
            servers=tuple(self._servers[server_id].status() for server_id in sorted(self._servers)),
        )

    def serving(self) -> list[ManagedServer]:
        """Return the servers at work, by their ids."""
        return [each for _, each in sorted(self._servers.items()) if each.state is State.SERVING]

    async def start(
        self, specs: Sequence[ServerSpec], report: Report | None = None, *, as_configured: bool = False
    ) -> list[Outcome]:
        """Start the servers that do not run yet; returns when each serves or has failed.

        With ``as_configured`` files ask for them, and no person: one that runs becomes what they say, and
        one that is drained stays so. A configured one that is refused is logged, and named in the status.

        Two servers are the same if they differ in nickname and tuning at most (manual page, ``start``). Of
        the tuning, LISTEN alone makes another one.

        Returns:
            One outcome for each spec, in order. One that is refused has no server, and its error says why.
        """
        with self._commands.begin(report) as followed:
            outcomes = []
            # All are begun before the first is waited for: they start side by side.
            for begun in [self._begin(spec, followed, as_configured=as_configured) for spec in specs]:
                if isinstance(begun, Outcome):
                    outcomes.append(begun)
                else:
                    server, already = begun
                    outcomes.append(await self._started(server, already=already))
            return outcomes

    async def stop(self, ids: Sequence[int], report: Report | None = None) -> list[Outcome]:
        """Stop servers and forget them; wait until each is gone. A second stop ends their requests."""
        return await self._command_each(ids, Event.STOP, report, done=State.STOPPED)

    async def restart(self, ids: Sequence[int], report: Report | None = None) -> list[Outcome]:
        """Stop and start servers, with the settings, ids and ports that they have."""
        return await self._command_each(ids, Event.RESTART, report, done=State.SERVING)

    async def drain(self, ids: Sequence[int], report: Report | None = None) -> list[Outcome]:
        """Let servers finish what they have and reset new connections; wait until they are idle."""
        outcomes = await self._command_each(ids, Event.DRAIN, report, done=State.DRAINING)
        for outcome in outcomes:
            server = outcome.server and self._servers.get(outcome.server.id)
            if server and outcome.error is None:
                await server.wait_idle()
        return outcomes

    async def undrain(self, ids: Sequence[int], report: Report | None = None) -> list[Outcome]:
        """Let drained servers accept again."""
        return await self._command_each(ids, Event.UNDRAIN, report, done=State.SERVING)

    async def reload(
        self,
        specs: Sequence[ServerSpec],
        *,
        unreadable: Collection[str] = (),
        report: Report | None = None,
    ) -> list[Outcome]:
        """Make the configured servers those of ``specs``; the unchanged go on and lose nothing.

        Servers from the files ``unreadable`` go on, too, and those that no file asked for. Returns the
        outcomes of stops, then one for each spec.
        """
        with self._commands.begin(None):
            wanted = {self._identity(spec.settings): spec for spec in specs}
            leaving = []
            for server in list(self._servers.values()):
                spec = wanted.get(self._identity(server.settings))
                if spec is not None:
                    # Its nickname may be that of a server that leaves: then it follows when that has.
                    with contextlib.suppress(ConfigError):
                        self._follow(server, spec)
                elif server.origin is not None and server.origin not in unreadable:
                    leaving.append(server.id)
            return await self.stop(leaving, report) + await self.start(specs, report, as_configured=True)

    async def wait_failed(self, server_id: int) -> str:
        """Wait until a server has failed; returns why. Of one that is stopped meanwhile, wait for ever."""
        server = self._servers[server_id]
        await server.wait_for({State.FAILED})
        return server.status().reason or "it failed"

    def resume(self) -> None:
        """Start again what a supervisor that died had on record: same ids, nicknames and ports."""
        if self._saved is None:
            return
        records, faults = self._saved.servers.read()
        for fault in faults:
            self._log.warning("stat_file.damaged", reason=fault)
        for record in records:
            if record.settings.user not in {None, self._runtime.user}:
                continue
            self._log.info("server.resumed", id=record.id)
            spec = ServerSpec(record.settings, record.origin)
            server = self._add(record.id, spec, last_port=record.port)
            server.is_drained = record.drained
            server.start(undrain=False)

    def forget_records(self) -> None:
        """Take off the record what a supervisor that died was hosting, in place of resuming it."""
        if self._saved is not None:
            for record in self._saved.servers.read()[0]:
                self._saved.servers.forget(record.id)

    def _begin(
        self, spec: ServerSpec, followed: set[int], *, as_configured: bool
    ) -> tuple[ManagedServer, bool] | Outcome:
        self.refused.pop(spec.origin or "", None)
        try:
            self._check_not_ending()
            self._check_user(spec.settings)
            same = self._find(spec)
            if same is not None:
                already = same.wanted is Wanted.UP and same.state in RUNNING
                followed.add(same.id)
                if as_configured or (spec.origin is not None and spec.origin == same.origin):
                    self._follow(same, spec)
                same.start(undrain=not as_configured)
                return same, already
            server = self._add_new(spec)
        except (ConfigError, LifecycleError) as exc:
            if spec.origin is not None and not self._ending.is_set():
                self.refused[spec.origin] = f"{spec.origin}: {exc}"
                self._log.error("configuration.refused", reason=self.refused[spec.origin])
                self._runtime.activity.changes.note()
            return Outcome(None, already=False, error=str(exc))
        followed.add(server.id)
        server.handle(Event.START)
        return server, False

    def _follow(self, server: ManagedServer, spec: ServerSpec) -> None:
        self._check_nickname(spec.settings.nickname, server)
        server.origin = spec.origin
        if spec.settings != server.settings:
            server.apply_settings(spec.settings)

    def _check_not_ending(self) -> None:
        if self._ending.is_set():
            raise LifecycleError("the supervisor is ending")

    def _check_user(self, settings: ServerSettings) -> None:
        if settings.user not in {None, self._runtime.user}:
            raise ConfigError(f"this supervisor runs as {self._runtime.user}, not as {settings.user}")

    async def _started(self, server: ManagedServer, *, already: bool) -> Outcome:
        state = await server.wait_for(SETTLED)
        status = server.status()
        if state in {State.SERVING, State.DRAINING}:
            return Outcome(status, already=already, error=None)
        if state is State.FAILED and server.origin is None and not server.has_served:
            # Asked for once and impossible: there is nothing to keep.
            server.handle(Event.STOP)
        return Outcome(status, already=False, error=status.reason or f"is {state.value}")

    async def _command_each(
        self, ids: Sequence[int], event: Event, report: Report | None, *, done: State
    ) -> list[Outcome]:
        with self._commands.begin(report) as followed:
            refused: dict[int, str] = {}
            servers = [self._servers[server_id] for server_id in ids if server_id in self._servers]
            followed.update(server.id for server in servers)
            for server in servers:
                try:
                    if event is Event.RESTART:
                        self._check_not_ending()
                    server.handle(event)
                except LifecycleError as exc:
                    refused[server.id] = str(exc)
            outcomes = []
            for server in servers:
                error = refused.get(server.id)
                if error is None and await server.wait_for(SETTLED) is not done:
                    status = server.status()
                    error = status.reason or f"is {status.state.value}"
                outcomes.append(Outcome(server.status(), already=False, error=error))
            return outcomes

    def _add_new(self, spec: ServerSpec) -> ManagedServer:
        if self._saved is None:
            return self._add(os.getpid(), spec, last_port=None)
        port = self._saved.ports.recall(spec.settings)
        return self._add(self._saved.servers.allocate_id(), spec, last_port=port)

    def _add(self, server_id: int, spec: ServerSpec, *, last_port: int | None) -> ManagedServer:
        server = ManagedServer(
            id=server_id,
            settings=spec.settings,
            origin=spec.origin,
            last_port=last_port,
            prepare=partial(self._prepare, server_id),
            tasks=self._tasks,
            log=self._log.bind(server=server_id, nickname=spec.settings.nickname or str(server_id)),
            open_log=partial(self._open_log_of, server_id),
            changed=self._changed,
            withdraw=self._advertiser.withdraw,
        )
        self._servers[server_id] = server
        return server

    async def _open_log_of(self, server_id: int, settings: ServerSettings) -> Log:
        path = settings.log or self._defaults.log
        try:
            log = await self._log_files.run(partial(self._open_log, path, settings.log_format))
        except OSError as exc:
            problem, remedy = f"cannot be opened: {exc.strerror}", "see which file system hangs"
            raise ConfigError(problem, where=f"log file {path}", remedy=remedy) from exc
        return log.bind(server=server_id, nickname=settings.nickname or str(server_id))

    async def _prepare(
        self, server_id: int, settings: ServerSettings, log: Log, last_port: int | None
    ) -> CompileServer:
        log.info("server.starting", pid=os.getpid(), user=self._runtime.user)
        return await self._runtime.prepare(
            settings, log, server_id=server_id, last_port=last_port, shared=self._pool
        )

    def _find(self, spec: ServerSpec) -> ManagedServer | None:
        identity = self._identity(spec.settings)
        for server in self._servers.values():
            if self._identity(server.settings) == identity:
                return server
        self._check_nickname(spec.settings.nickname, None)
        return None

    def _check_nickname(self, nickname: str | None, owner: ManagedServer | None) -> None:
        for server in self._servers.values():
            if server is not owner and nickname is not None and server.nickname == nickname:
                raise ConfigError(
                    f"nickname '{nickname}' is that of server {server.id}, which has other settings",
                    remedy="stop that one first, or give another nickname",
                )

    def _identity(self, settings: ServerSettings) -> ServerSettings:
        return settings.identity(self._defaults)

    def _changed(self, server: ManagedServer) -> None:
        """Bring advertisement, warm-up and record up to date; forget a server that is down for good."""
        if server.state is State.SERVING and server.server is not None:
            self._advertiser.advertise(server.id, server.server)
            service = server.server.service
            self._runtime.warmup.add(server.id, service.settings, service.release_health.values())
        else:
            self._advertiser.retract(server.id)
            self._runtime.warmup.remove(server.id)
        if self._saved is not None:
            self._record(server, self._saved)
        if server.state is State.STOPPED and server.wanted is Wanted.DOWN:
            self._servers.pop(server.id, None)
        self._commands.report_change(server.id, server.status)
        self._runtime.activity.changes.note()

    def _record(self, server: ManagedServer, saved: SavedState) -> None:
        if server.wanted is Wanted.UP and server.state is not State.FAILED:
            try:
                saved.servers.write(server.record())
            except ConfigError as exc:
                self._log.warning("stat_file.unwritable", reason=exc)
        else:
            saved.servers.forget(server.id)
        if server.state is State.SERVING and server.settings.port == 0 and server.last_port is not None:
            saved.ports.remember(server.settings, server.last_port)

    # A release is advertised only while it can be compiled for.
    def _health_changed(self, health: ReleaseHealth) -> None:
        self._runtime.activity.changes.note()
        for server in self.serving():
            if (own := server.server) and any(health is each for each in own.service.release_health.values()):
                self._advertiser.advertise(server.id, own)

    def _command_ended(self) -> None:
        # A server that has failed keeps no supervisor alive: nothing starts it again.
        hosted = any(server.state is not State.FAILED for server in self._servers.values())
        if self._auto_end and not hosted and not self._commands:
            self._ending.set()
