"""One compile server at work: its listener, its sessions, and how it comes to an end.

A server accepts until it is stopped or cancelled. Stopping closes the listener, sends away the
peers whose request has not arrived, and lets those with a request finish for a while; what is left
then is broken off, and with it every compile's process tree, but for answers that are under way.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from functools import partial

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus

from stapsrv.compile.context import CompileService
from stapsrv.compile.health import ReleaseHealth
from stapsrv.compile.session import Session
from stapsrv.compile.stats import ConnectionOutcome
from stapsrv.config.settings import ServerSettings
from stapsrv.rejection import RejectReason
from stapsrv.supervisor.server.accept import accept_forever, deny
from stapsrv.supervisor.server.admission import (
    Admission,
    ConnectionBudget,
    NetworkRules,
    Rejection,
    client_of,
)
from stapsrv.supervisor.server.listener import Peer, SocketAddress, address_of, reset
from stapsrv.supervisor.status import ReleaseStatus, ServerWork

# At work at once; more are reset, and come back a few times.
_MAX_DENIALS = 64
# For clients to take the answers that are under way when the time of the others is over.
_SENDING_S = 3.0


class CompileServer:
    """Serves one port, once.

    The listeners, listening and non-blocking, are its own: it closes them when it stops accepting. The budget
    of connections is shared with other servers.
    """

    def __init__(
        self, service: CompileService, listeners: Sequence[socket.socket], *, budget: ConnectionBudget
    ) -> None:
        self.service = service
        self._listeners = tuple(listeners)
        self._sessions: set[Session] = set()
        self._admission = Admission(budget)
        self._gone = anyio.Event()
        self._draining = False
        self._accepting = anyio.CancelScope()
        self._rules = NetworkRules(service.settings.access)
        self._denials = 0
        self.addresses = tuple(map(address_of, listeners))

    @property
    def address(self) -> Peer:
        """The address it listens on, the first of several; all have the same port."""
        return self.addresses[0]

    @property
    def outstanding(self) -> int:
        """Requests that arrived whole and are not answered yet."""
        return sum(session.outstanding for session in self._sessions)

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until :meth:`stop`, then finish outstanding requests within ``drain_s`` seconds.

        An answer that is under way then has three seconds more.

        Raises:
            OSError: a listener failed for another reason than a shortage; in a group.

        Cancellation: every session and every compile is ended before this returns.
        """
        log = self.service.log
        for address in self.addresses:
            log.info("server.listening", address=address)
        if self.service.settings.max_threads == 0:
            log.info("server.serial")
        else:
            log.info("server.threads", threads=self.service.settings.workers)
        async with self.service.engine.open(), anyio.create_task_group() as sessions:
            with self._accepting, contextlib.ExitStack() as open_ones:
                for listener in self._listeners:
                    open_ones.callback(listener.close)
                async with anyio.create_task_group() as accepting:
                    accepting.start_soon(self.service.rejections.log_suppressed)
                    for listener in self._listeners:
                        accepting.start_soon(self._accept, listener, sessions)
                    task_status.started()
            if self.outstanding:
                log.info("server.draining", outstanding=self.outstanding)
            for session in self._sessions:
                # A client whose request has not arrived whole loses nothing: it tries again.
                session.give_up_arrival()
            with anyio.move_on_after(self.service.settings.limits.drain_s):
                await self.wait_idle()
            for session in self._sessions:
                session.break_off()
            sessions.cancel_scope.deadline = anyio.current_time() + _SENDING_S

    def drain(self) -> None:
        """Reset new connections, and finish what is outstanding, until :meth:`undrain`."""
        self._draining = True
        for session in self._sessions:
            session.give_up_arrival()

    def undrain(self) -> None:
        """Let new connections in again."""
        self._draining = False

    def apply_settings(self, settings: ServerSettings) -> None:
        """Apply the tuning of ``settings``, otherwise its own, to all connections to come."""
        self.service = attrs.evolve(self.service, settings=settings)
        self.service.pool.queue_length = settings.limits.queue_length
        self._rules = NetworkRules(settings.access)

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        while self._sessions:
            await self._gone.wait()

    def work(self) -> ServerWork:
        """Return a snapshot of its work."""
        pool = self.service.pool.statistics()
        counts = self.service.counts
        identity = self.service.identity.loaded
        return ServerWork(
            workers=pool.workers,
            running=pool.running,
            queued=pool.queued,
            done=counts.done,
            failed=counts.failed,
            certificate_expires=identity.not_after,
            certificate_serial=identity.serial,
            certificate_sha256=identity.sha256,
            connections=len(self._sessions),
            refusals=dict(self.service.rejections.counts),
            releases=self._releases(),
            recent=self.service.latencies.times(),
            cache=self.service.engine.counts.snapshot(),
            engine=None if self.service.elsewhere is None else self.service.elsewhere.status(),
        )

    def stop(self) -> None:
        """Stop accepting; :meth:`serve` returns when outstanding requests are finished or overdue."""
        self._accepting.cancel()

    def _releases(self) -> tuple[ReleaseStatus, ...]:
        healths = self.service.release_health
        known = ((name, healths.get(name, ReleaseHealth())) for name in self.service.releases)
        return tuple(ReleaseStatus(name, health.health, health.reason) for name, health in known)

    async def _accept(self, listener: socket.socket, sessions: TaskGroup) -> None:
        await accept_forever(
            listener,
            partial(self._take, sessions),
            exhausted=lambda reason: self.service.log.warning("listener.exhausted", reason=reason),
        )

    def _take(self, sessions: TaskGroup, connection: socket.socket, sockaddr: SocketAddress) -> None:
        peer, log = Peer.of(sockaddr), self.service.log
        client = client_of(peer.address)
        if not self._rules.permit(peer.address):
            self._reject(RejectReason.DENIED, lambda: log.warning("connection.denied", peer=peer))
            if self._denials < _MAX_DENIALS:
                self._denials += 1
                sessions.start_soon(self._deny, connection)
            else:
                reset(connection)
        elif rejection := self._check_load(client):
            line = partial(log.warning, "connection.refused", peer=peer, reason=rejection.reason)
            self._reject(rejection.reject_reason, line)
            # Before the handshake: the one way to tell a client to come back (PROTOCOL, the connection).
            reset(connection)
        else:
            session = Session(self.service, peer=peer, client=client)
            self._sessions.add(session)
            self.service.activity.changes.note()
            self._admission.enter(client)
            sessions.start_soon(self._run, session, connection, client)

    def _reject(self, reason: RejectReason, log_line: Callable[[], object]) -> None:
        self.service.counters.connections[ConnectionOutcome.REFUSED] += 1
        self.service.rejections.count(reason, log_line)
        self.service.activity.changes.note()

    def _check_load(self, client: str) -> Rejection | None:
        if self._draining:
            return Rejection(RejectReason.DRAINING, "the server is draining")
        limits, pool = self.service.settings.limits, self.service.pool
        rejection = self._admission.check(client, limits)
        if rejection is None and pool.is_full:
            return Rejection(RejectReason.QUEUE_LENGTH, f"{pool.queue_length} requests are waiting already")
        return rejection

    async def _deny(self, connection: socket.socket) -> None:
        try:
            await deny(connection)
        finally:
            self._denials -= 1

    async def _run(self, session: Session, connection: socket.socket, client: str) -> None:
        try:
            await session.run(connection)
        finally:
            self._sessions.discard(session)
            self._admission.leave(client)
            self.service.activity.changes.note()
            self._gone.set()
            self._gone = anyio.Event()
