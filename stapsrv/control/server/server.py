"""The control socket: listens, admits peers, and runs a task for each connection."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.settings import HostDefaults
from stapsrv.control.protocol.jsonrpc import Code, encode_error
from stapsrv.control.server.auth import Access, Peer, Policy, cached_user_name, read_peer
from stapsrv.control.server.connection import Connection, ControlLimits, RateLimiter
from stapsrv.control.server.handlers import Caller, Reload, RpcHandlers, Scripts
from stapsrv.errors import ConfigError, ControlError
from stapsrv.observe.feed import LiveFeed
from stapsrv.supervisor.server.accept import accept_forever
from stapsrv.supervisor.state.lock import GROUP
from stapsrv.system.unix_socket import open_socket_file

if TYPE_CHECKING:
    from stapsrv.supervisor.supervisor import Supervisor

# Connections that the kernel completes while the loop is busy: as many as are admitted at once.
_BACKLOG = 128


@contextlib.contextmanager
def open_control_socket(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path``, replacing a stale socket. The listener is non-blocking; the block's end removes it.

    Raises:
        ConfigError: it cannot be made.
    """
    # The caller holds the directory's lock, so no other supervisor listens.
    with contextlib.ExitStack() as held:
        try:
            listener = held.enter_context(open_socket_file(path, group=GROUP, backlog=_BACKLOG))
        except OSError as exc:
            raise ConfigError(
                f"cannot be made: {exc.strerror}",
                where=f"control socket {path}",
                remedy="let the server's user write to its directory, or set STAT_PATH to another one",
            ) from exc
        yield listener


async def serve_control(
    path: Path,
    commands: Supervisor,
    *,
    feed: LiveFeed,
    reload: Reload,
    scripts: Scripts,
    defaults: HostDefaults,
    policy: Policy,
    log: Log,
    limits: ControlLimits | None = None,
    identify: Callable[[socket.socket], Peer] = read_peer,
    passed: socket.socket | None = None,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the control protocol at ``path`` until cancelled.

    The caller holds the lock of the path's directory. ``defaults`` are for servers whose settings leave
    something out. ``passed`` is an inherited listener for ``path``; its file is left when it is closed.
    ``task_status`` is started when the socket accepts.

    Raises:
        ConfigError: the socket cannot be created.

    Cancellation: requests in flight are answered within ``shutdown_grace_s``, most of them with
    SHUTTING_DOWN; running commands are cancelled.
    """
    with contextlib.ExitStack() as listening:
        own = open_control_socket(path) if passed is None else contextlib.closing(passed)
        listener = listening.enter_context(own)
        async with anyio.create_task_group() as tasks:
            endpoint = _Endpoint(
                handlers=RpcHandlers(
                    commands,
                    feed=feed,
                    reload=reload,
                    scripts=scripts,
                    defaults=defaults,
                    tasks=tasks,
                    log=log,
                ),
                policy=policy,
                limits=limits or ControlLimits(),
                identify=identify,
                tasks=tasks,
                log=log,
            )
            task_status.started()
            try:
                # Running out of file descriptors only pauses.
                await accept_forever(
                    listener,
                    lambda accepted, _address: endpoint.admit(accepted),
                    exhausted=lambda reason: log.warning("control.exhausted", reason=reason),
                )
            finally:
                listening.close()
                endpoint.set_deadline()


@attrs.define(kw_only=True)
class _Endpoint:
    """Admits peers and keeps their connections."""

    _handlers: RpcHandlers
    _policy: Policy
    _limits: ControlLimits
    _identify: Callable[[socket.socket], Peer]
    _tasks: TaskGroup
    _log: Log
    _connections: set[Connection] = attrs.field(factory=set, init=False)
    # By user id: only those who are let in get one, so there are no more than the group has members.
    _limiters: dict[int, RateLimiter] = attrs.field(factory=dict, init=False)
    _full: bool = attrs.field(default=False, init=False)

    def set_deadline(self) -> None:
        """Limit the time for the answers left of all connections to ``shutdown_grace_s``."""
        deadline = anyio.current_time() + self._limits.shutdown_grace_s
        for connection in self._connections:
            connection.set_deadline(deadline)

    def admit(self, accepted: socket.socket) -> None:
        """Serve an accepted connection in a task of its own, or close it after a line that says why not."""
        try:
            peer = self._identify(accepted)
            access = self._policy.access_of(peer)
            self._refuse_stranger(peer, access)
            self._refuse_crowd(access)
        except (OSError, ControlError) as exc:
            # A peer that the kernel cannot name has gone already.
            if isinstance(exc, ControlError):
                with contextlib.suppress(OSError):
                    accepted.send(encode_error(None, exc))
            accepted.close()
            return
        self._full = False
        limiter = self._limiters.setdefault(peer.uid, RateLimiter(self._limits))
        connection = Connection(
            accepted,
            Caller(cached_user_name(peer.uid), access),
            self._handlers,
            limits=self._limits,
            limiter=limiter,
            log=self._log,
        )
        self._connections.add(connection)
        self._tasks.start_soon(self._run, connection)

    def _refuse_stranger(self, peer: Peer, access: Access) -> None:
        if access is Access.NONE:
            self._log.warning("control.refused", user=peer.uid, reason="connecting is not permitted")
            raise ControlError(
                f"user id {peer.uid} may not speak to this supervisor",
                code=Code.NOT_PERMITTED,
                remedy="ask as the user that it runs as, or join group stap-server to read its status",
            )

    def _refuse_crowd(self, access: Access) -> None:
        readers = sum(connection.caller.access is Access.READ for connection in self._connections)
        limits = self._limits
        if len(self._connections) >= limits.connections:
            most = limits.connections
        elif access is Access.READ and readers >= limits.reader_connections:
            most = limits.reader_connections
        else:
            return
        reason = f"{most} connections are open already"
        if not self._full:
            # Once until there is room again: who knocks in a loop does not write the log.
            self._log.warning("control.crowded", reason=reason)
        self._full = True
        raise ControlError(reason, code=Code.BUSY, remedy="try again later")

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run()
        except Exception:  # noqa: BLE001 - the one net below a connection; its neighbours never notice
            self._log.exception("control.crashed", user=connection.caller.user)
        finally:
            self._connections.discard(connection)
