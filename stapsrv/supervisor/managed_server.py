"""A hosted server: the shell around the table of its life (:mod:`stapsrv.supervisor.lifecycle`)."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Protocol

import anyio
from anyio.abc import TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError, IdentityError, first_error
from stapsrv.supervisor.lifecycle import (
    HEALTHY_S,
    Action,
    Event,
    State,
    Wanted,
    back_off_s,
    transition,
)
from stapsrv.supervisor.server.compile_server import CompileServer
from stapsrv.supervisor.status import NO_WORK, ServerStatus


class Preparer(Protocol):
    """Makes a server ready to accept."""

    async def __call__(self, settings: ServerSettings, log: Log, *, last_port: int | None) -> CompileServer:
        """Return a server that listens, at ``last_port`` if it may choose and that is free.

        Raises:
            ConfigError: a setting cannot be served.
            IdentityError: there is no certificate, and none could be made.
        """


class ManagedServer:
    """One server of a supervisor, from the first start to the last stop.

    Its work runs in ``tasks``, the supervisor's. ``changed`` is called after each change of state;
    ``withdraw``
    is waited for, and bounded, before the listener is closed.
    """

    def __init__(
        self,
        server_id: int,
        settings: ServerSettings,
        *,
        origin: str | None,
        last_port: int | None,
        prepare: Preparer,
        tasks: TaskGroup,
        log: Log,
        changed: Callable[[ManagedServer], None],
        withdraw: Callable[[int], Awaitable[None]],
    ) -> None:
        self.id = server_id
        self.settings = settings
        self.origin = origin
        self.state = State.STOPPED
        self.wanted = Wanted.DOWN
        self.last_port = last_port
        self.has_served = False
        self._prepare = prepare
        self._tasks = tasks
        self._log = log
        self._changed = changed
        self._withdraw = withdraw
        self._since = datetime.now(UTC)
        self._reason: str | None = None
        self._server: CompileServer | None = None
        self._run = anyio.CancelScope()
        self._delay = anyio.CancelScope()
        self._crashes = 0
        self._waiters = anyio.Event()

    @property
    def nickname(self) -> str:
        """The given nickname, else the id (manual page, ``-n``)."""
        return self.settings.nickname or str(self.id)

    @property
    def server(self) -> CompileServer | None:
        """The compile server that serves now, if any."""
        return self._server

    def command(self, event: Event) -> None:
        """Begin what a command says; raise LifecycleError if it does not fit the state."""
        self._handle(event)

    def apply_settings(self, settings: ServerSettings) -> None:
        """Apply settings that differ in tuning alone: at once, without a connection lost."""
        self.settings = settings
        if self._server is not None:
            self._server.apply_settings(settings)
        self._changed(self)

    async def wait_for(self, states: AbstractSet[State]) -> State:
        """Wait until the server is in one of ``states``, and return which."""
        while self.state not in states:
            await self._waiters.wait()
        return self.state

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        if self._server is not None:
            await self._server.wait_idle()

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
            work=NO_WORK if self._server is None else self._server.work(),
        )

    def _handle(self, event: Event, *, reason: str | None = None) -> None:
        step = transition(self.wanted, self.state, event)
        if step.state is not self.state:
            self._since = datetime.now(UTC)
            self._reason = reason
        self.state = step.state
        self.wanted = step.wanted or self.wanted
        for action in step.actions:
            self._perform(action)
        self._waiters.set()
        self._waiters = anyio.Event()
        self._changed(self)

    def _perform(self, action: Action) -> None:
        match action:
            case Action.LAUNCH:
                self._run = anyio.CancelScope()
                self._tasks.start_soon(self._live, self._run)
            case Action.ABORT:
                self._run.cancel()
            case Action.DELAY:
                self._delay = anyio.CancelScope()
                self._tasks.start_soon(self._back_off, self._delay)
            case Action.CANCEL_DELAY:
                self._delay.cancel()
            case Action.FINISH if self._server is not None:
                self._tasks.start_soon(self._finish, self._server)
            case Action.PAUSE_ACCEPT if self._server is not None:
                self._log.info("server.accept_paused")
                self._server.drain()
            case Action.RESUME_ACCEPT if self._server is not None:
                self._log.info("server.accept_resumed")
                self._server.undrain()

    async def _live(self, scope: anyio.CancelScope) -> None:
        """Prepare and serve once; every outcome becomes an event, and stays with this server."""
        end, reason = Event.ENDED, None
        began = anyio.current_time()
        try:
            with scope:
                await self._serve()
        except* (ConfigError, IdentityError) as refusals:
            end, reason = Event.REFUSED, str(first_error(refusals))
            self._log.error("server.refused", reason=reason)
        except* Exception as crash:  # noqa: BLE001 - the one net below a server; its neighbours never notice
            end, reason = Event.CRASHED, repr(first_error(crash))
            self._crashes = 1 if anyio.current_time() - began >= HEALTHY_S else self._crashes + 1
            self._log.exception("server.crashed", exc_info=crash)
        else:
            # One that is the whole process ends with it, and the line about the signal says so.
            if self.id != os.getpid():
                self._log.info("server.stopped")
        self._server = None
        if scope.cancel_called or end is not Event.ENDED or self.state is State.STOPPING:
            self._handle(end, reason=reason)

    async def _serve(self) -> None:
        settings = self.settings
        server = await self._prepare(settings, self._log, last_port=self.last_port)
        async with anyio.create_task_group() as serving:
            await serving.start(server.serve)
            self._server = server
            if self.settings is not settings:
                # Changed while it was made ready.
                server.apply_settings(self.settings)
            self.last_port = server.address.port
            self.has_served = True
            self._handle(Event.READY)

    async def _finish(self, server: CompileServer) -> None:
        # Clients that browse should not find a port that is about to be closed.
        await self._withdraw(self.id)
        server.stop()

    async def _back_off(self, scope: anyio.CancelScope) -> None:
        with scope:
            delay_s = back_off_s(self._crashes)
            self._log.warning("server.backing_off", seconds=delay_s)
            await anyio.sleep(delay_s)
            self._handle(Event.DELAY_OVER)
