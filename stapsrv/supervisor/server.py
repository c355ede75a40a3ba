"""One compile server at work: its listener, its sessions, and how it comes to an end.

A server accepts until it is told to stop, or cancelled. Stopping closes the listener, sends away the
peers whose request has not arrived, and lets those with a request finish for a while; what is left
then is cancelled, and with it every compile's process tree.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from datetime import datetime

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus

from stapsrv.compile.service import CompileService
from stapsrv.compile.session import Session
from stapsrv.compile.standing import Standing
from stapsrv.compile.tally import ConnectionOutcome
from stapsrv.config.settings import ServerSettings
from stapsrv.identity.store import LiveIdentity
from stapsrv.refusal import Refusal
from stapsrv.supervisor.admission import Admission, ConnectionBudget, TurnedAway, client_of
from stapsrv.supervisor.listener import Peer, accept_connections, address_of
from stapsrv.supervisor.status import ReleaseStatus


@attrs.frozen(kw_only=True)
class ServerStatistics:
    """A server's work at one moment.

    Attributes:
        connections: open ones, whatever they are doing.
        running: requests that compile.
        queued: requests that wait for a worker.
        done: requests answered, whatever stap said of them.
        failed: requests that came to no answer of stap's.
        refusals: what was turned away, by reason; every reason is there.
        certificate_expires: the end of the certificate's validity.
    """

    connections: int
    running: int
    queued: int
    done: int
    failed: int
    refusals: Mapping[Refusal, int]
    certificate_expires: datetime


class CompileServer:
    """Serves one listener; used once.

    Args:
        service: what its sessions share.
        listener: listening and non-blocking; closed when the server stops accepting.
        identity: whose certificate and keys clients hear of; None for a server that is not advertised.
        budget: of connections, shared with other servers.
    """

    def __init__(
        self,
        service: CompileService,
        listener: socket.socket,
        *,
        identity: LiveIdentity | None = None,
        budget: ConnectionBudget,
    ) -> None:
        self.identity = identity
        self._service = service
        self._listener = listener
        self._sessions: set[Session] = set()
        self._admission = Admission(budget)
        self._gone = anyio.Event()
        self._draining = False
        self._accepting = anyio.CancelScope()
        self.address = address_of(listener)

    @property
    def service(self) -> CompileService:
        """What its sessions share."""
        return self._service

    @property
    def outstanding(self) -> int:
        """Requests that arrived whole and are not answered yet."""
        return sum(session.outstanding for session in self._sessions)

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until :meth:`stop`; then finish what is outstanding, within ``drain_s``.

        Raises:
            OSError: the listener failed for another reason than a shortage.

        Cancellation: every session and every compile is ended before this returns.
        """
        log = self._service.log
        log.info("server.listening", address=self.address)
        if self._service.settings.max_threads == 0:
            log.info("server.serial")
        else:
            log.info("server.threads", threads=self._service.settings.workers)
        async with self._service.flights.open(), anyio.create_task_group() as sessions:
            with self._accepting, contextlib.closing(self._listener):
                async with anyio.create_task_group() as accepting:
                    accepting.start_soon(self._service.refusals.tell)
                    task_status.started()
                    await accept_connections(
                        self._listener,
                        admit=self._admit,
                        serve=lambda connection, peer: self._begin(sessions, connection, peer),
                        log=log,
                    )
            if self.outstanding:
                log.info("server.draining", outstanding=self.outstanding)
            for session in self._sessions:
                session.give_up_arrival()
            sessions.cancel_scope.deadline = anyio.current_time() + self._service.settings.limits.drain_s

    def drain(self) -> None:
        """Reset new connections, and finish what is outstanding, until :meth:`undrain`."""
        self._draining = True
        for session in self._sessions:
            session.give_up_arrival()

    def undrain(self) -> None:
        """Let new connections in again."""
        self._draining = False

    def tune(self, settings: ServerSettings) -> None:
        """Have the tuning of ``settings``, otherwise its own, hold for all connections to come."""
        self._service = attrs.evolve(self._service, settings=settings)
        self._service.pool.queue_length = settings.limits.queue_length

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        while self._sessions:
            await self._gone.wait()

    def statistics(self) -> ServerStatistics:
        """Return a snapshot of its work."""
        pool = self._service.pool.statistics()
        counts = self._service.counts
        return ServerStatistics(
            connections=len(self._sessions),
            running=pool.running,
            queued=pool.queued,
            done=counts.done,
            failed=counts.failed,
            refusals=dict(self._service.refusals.counts),
            certificate_expires=self._service.identity().not_after,
        )

    def releases(self) -> tuple[ReleaseStatus, ...]:
        """Return what it serves, and whether that can be compiled for."""
        standings = self._service.standings
        known = ((name, standings.get(name, Standing())) for name in self._service.releases)
        return tuple(ReleaseStatus(name, standing.health, standing.reason) for name, standing in known)

    def serves_under(self, standing: Standing) -> bool:
        """Whether one of its releases has this very standing."""
        return any(standing is other for other in self._service.standings.values())

    def stop(self) -> None:
        """Stop accepting; :meth:`serve` returns when outstanding requests are finished or overdue."""
        self._accepting.cancel()

    def _admit(self, peer: Peer) -> bool:
        """Whether a new connection is let in; if not, it is counted and logged."""
        away = self._judge(client_of(peer.address))
        if away is not None:
            log = self._service.log
            self._service.tally.connections[ConnectionOutcome.REFUSED] += 1
            self._service.refusals.note(
                away.refusal, lambda: log.warning("connection.refused", peer=peer, reason=away.reason)
            )
        return away is None

    def _judge(self, client: str) -> TurnedAway | None:
        if self._draining:
            return TurnedAway(Refusal.DRAINING, "the server is draining")
        limits, pool = self._service.settings.limits, self._service.pool
        away = self._admission.judge(client, limits)
        if away is None and pool.full:
            return TurnedAway(Refusal.QUEUE_LENGTH, f"{pool.queue_length} requests are waiting already")
        return away

    def _begin(self, sessions: TaskGroup, connection: socket.socket, peer: Peer) -> None:
        client = client_of(peer.address)
        session = Session(self._service, peer=peer, client=client)
        self._sessions.add(session)
        self._admission.enter(client)
        sessions.start_soon(self._run, session, connection, client)

    async def _run(self, session: Session, connection: socket.socket, client: str) -> None:
        try:
            await session.run(connection)
        finally:
            self._sessions.discard(session)
            self._admission.leave(client)
            self._gone.set()
            self._gone = anyio.Event()
