"""A hosted server: the shell around the table of its life (:mod:`stapsrv.supervisor.lifecycle`)."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime

import anyio
import attrs
from anyio.abc import TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError, IdentityError, first_error
from stapsrv.supervisor.lifecycle import (
    COMMANDS,
    HEALTHY_S,
    Action,
    Event,
    State,
    Wanted,
    back_off_s,
    transition,
)
from stapsrv.supervisor.server.compile_server import CompileServer
from stapsrv.supervisor.state.stat_files import Record
from stapsrv.supervisor.status import ServerStatus, ServerWork


@attrs.define(eq=False, kw_only=True)
class ManagedServer:
    """One server of a supervisor, from the first start to the last stop."""

    id: int
    settings: ServerSettings
    origin: str | None
    last_port: int | None  # asked for again by a server that may choose its port
    # Raises ConfigError if a setting cannot be served, and IdentityError without a certificate.
    _prepare: Callable[[ServerSettings, Log, int | None], Awaitable[CompileServer]]
    # Of its own, opened anew for each launch; raises ConfigError.
    _open_log: Callable[[ServerSettings], Awaitable[Log]]
    # The supervisor's; the log says what happens before the server's own is open.
    _tasks: TaskGroup
    _log: Log
    _changed: Callable[[ManagedServer], None]  # called after each change of state
    _withdraw: Callable[[int], Awaitable[None]]  # waited for, and bounded, before the listener is closed
    state: State = attrs.field(init=False, default=State.STOPPED)
    wanted: Wanted = attrs.field(init=False, default=Wanted.DOWN)
    has_served: bool = attrs.field(init=False, default=False)
    # Until somebody says otherwise; a crash and a reload are no such word.
    is_drained: bool = attrs.field(init=False, default=False)
    # The compile server that serves now, if any.
    server: CompileServer | None = attrs.field(init=False, default=None)
    _own_log: Log | None = attrs.field(init=False, default=None)
    _since: datetime = attrs.field(init=False, factory=lambda: datetime.now(UTC))
    _reason: str | None = attrs.field(init=False, default=None)
    # Of the run or of the delay, whichever is under way.
    _scope: anyio.CancelScope = attrs.field(init=False, factory=anyio.CancelScope)
    _crashes: int = attrs.field(init=False, default=0)
    _waiters: anyio.Event = attrs.field(init=False, factory=anyio.Event)

    @property
    def nickname(self) -> str:
        """The given nickname, else the id (manual page, ``-n``)."""
        return self.settings.nickname or str(self.id)

    def apply_settings(self, settings: ServerSettings) -> None:
        """Apply settings that differ in tuning alone: at once, without a connection lost."""
        self.settings = settings
        if self.server is not None:
            self.server.apply_settings(settings)
        self._changed(self)

    async def wait_for(self, states: AbstractSet[State]) -> State:
        """Wait until the server is in one of ``states``, and return which."""
        while self.state not in states:
            await self._waiters.wait()
        return self.state

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        if self.server is not None:
            await self.server.wait_idle()

    def status(self) -> ServerStatus:
        """Return a snapshot."""
        return ServerStatus(
            id=self.id,
            nickname=self.nickname,
            settings=self.settings,
            origin=self.origin,
            wanted=self.wanted,
            state=self.state,
            since=self._since,
            reason=self._reason,
            port=self.last_port,
            work=ServerWork() if self.server is None else self.server.work(),
        )

    def record(self) -> Record:
        """Return what a later supervisor has to know to resume it."""
        return Record(
            id=self.id,
            settings=self.settings,
            origin=self.origin,
            port=self.last_port,
            drained=self.is_drained,
        )

    def start(self, *, undrain: bool) -> None:
        """Begin a start; without ``undrain`` a drained server stays so, or comes back so."""
        drained = self.is_drained and not undrain
        if not (drained and self.state is State.DRAINING):
            self.handle(Event.START, stay_drained=drained)

    def handle(self, event: Event, *, reason: str | None = None, stay_drained: bool = False) -> None:
        """Begin what a command or a fact means; raises LifecycleError if it does not fit the state."""
        step = transition(self.wanted, self.state, event)
        if step.state is not self.state:
            self._since = datetime.now(UTC)
            self._reason = reason
        if event in COMMANDS:
            # Before the change is recorded: a supervisor that is killed then resumes what the record says.
            self.is_drained = stay_drained or event is Event.DRAIN
        self.state = step.state
        self.wanted = step.wanted or self.wanted
        for action in step.actions:
            self._perform(action)
        self._waiters.set()
        self._waiters = anyio.Event()
        self._changed(self)

    @property
    def _logged(self) -> Log:
        return self._own_log or self._log

    def _perform(self, action: Action) -> None:
        match action:
            case Action.LAUNCH | Action.DELAY:
                self._scope = anyio.CancelScope()
                self._tasks.start_soon(self._live if action is Action.LAUNCH else self._back_off, self._scope)
            case Action.ABORT:
                self._scope.cancel()
            case Action.FINISH if self.server is not None:
                self._tasks.start_soon(self._finish, self.server)
            case Action.PAUSE_ACCEPT if self.server is not None:
                self._logged.info("server.accept_paused")
                self.server.drain()
            case Action.RESUME_ACCEPT if self.server is not None:
                self._logged.info("server.accept_resumed")
                self.server.undrain()

    async def _live(self, scope: anyio.CancelScope) -> None:
        """Prepare and serve once; every outcome becomes an event, and stays with this server."""
        end, reason = Event.ENDED, None
        began = anyio.current_time()
        try:
            with scope:
                await self._serve()
        except* (ConfigError, IdentityError) as refusals:
            end, reason = Event.REFUSED, str(first_error(refusals))
            self._logged.error("server.refused", reason=reason)
        except* Exception as crash:  # noqa: BLE001 - the one net below a server; its neighbours never notice
            reason = repr(first_error(crash))
            self._logged.exception("server.crashed", exc_info=crash)
        else:
            # One that is the whole process ends with it, and the line about the signal says so.
            if self.id != os.getpid():
                self._logged.info("server.stopped")
        self.server = None
        if self.state is not State.STOPPING:
            self._crashes = 1 if anyio.current_time() - began >= HEALTHY_S else self._crashes + 1
        self.handle(end, reason=reason)

    async def _serve(self) -> None:
        settings = self.settings
        self._own_log = None
        self._own_log = log = await self._open_log(settings)
        server = await self._prepare(settings, log, self.last_port)
        async with anyio.create_task_group() as serving:
            await serving.start(server.serve)
            self.server = server
            if self.settings is not settings:
                # Changed while it was made ready.
                server.apply_settings(self.settings)
            self.last_port = server.address.port
            self.has_served = True
            self.handle(Event.READY)
            if self.is_drained and self.state is State.SERVING:
                self.handle(Event.DRAIN)

    async def _finish(self, server: CompileServer) -> None:
        # Clients that browse should not find a port that is about to be closed.
        await self._withdraw(self.id)
        server.stop()

    async def _back_off(self, scope: anyio.CancelScope) -> None:
        with scope:
            delay_s = back_off_s(self._crashes)
            self._logged.warning("server.backing_off", seconds=delay_s)
            await anyio.sleep(delay_s)
        # A command in the turn in which the delay ends comes too late to interrupt the sleep.
        if not scope.cancel_called:
            self.handle(Event.DELAY_OVER)
