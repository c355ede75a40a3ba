"""One connection to the control socket: requests in, answers out, each within a limit.

A connection starts a task for each request and sends answers one at a time, each within a deadline. Nothing
that a peer does costs more than its connection. After the end of its input, requests in flight are still
answered, so that ``echo … | socat`` works.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable
from functools import partial

import anyio
import attrs
from anyio.abc import TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.control.protocol import jsonrpc
from stapsrv.control.protocol.jsonrpc import Code, LineBuffer, Request, RequestRefused
from stapsrv.control.protocol.live_fields import UpdateInfo
from stapsrv.control.protocol.schema import ScriptProgressInfo
from stapsrv.control.protocol.status_fields import ServerInfo
from stapsrv.control.server.handlers import Call, Caller, RpcHandlers
from stapsrv.errors import ControlError
from stapsrv.system.readiness import wait_readable, wait_writable

_READ_BYTES = 65_536


async def receive(connection: socket.socket) -> bytes:
    """Return received data, or nothing at the end of the input.

    Raises:
        OSError: the connection is broken.

    Cancellation: no data is lost.
    """
    while True:
        await wait_readable(connection)
        with contextlib.suppress(BlockingIOError):
            return connection.recv(_READ_BYTES)


async def send_all(connection: socket.socket, data: bytes) -> None:
    """Send all of ``data``.

    Raises:
        OSError: the connection is broken.

    Cancellation: a part of the data may have been sent.
    """
    view = memoryview(data)
    while view:
        await wait_writable(connection)
        with contextlib.suppress(BlockingIOError):
            view = view[connection.send(view) :]


# After these the start of the next request is unknown.
_ENDS_CONNECTION = frozenset({Code.PARSE_ERROR, Code.INVALID_REQUEST, Code.TIMED_OUT})


@attrs.frozen(kw_only=True)
class ControlLimits:
    """The limits of peers; with the size of lines they bound the server's memory (``docs/control.md``)."""

    connections: int = 128
    # Of all connections, so that readers cannot keep out the owner.
    reader_connections: int = 32
    # Unanswered requests of one connection.
    in_flight: int = 16
    # Of one user; requests beyond it are read later.
    requests_per_s: float = 50.0
    # Requests that a user may be ahead of that rate.
    burst: int = 200
    # From a line's first byte to its end.
    line_s: float = 10.0
    # Without a request, and with none in flight.
    idle_s: float = 600.0
    # For a peer to accept one line.
    write_s: float = 10.0
    # For all answers that are left when the server ends.
    shutdown_grace_s: float = 1.0


class RateLimiter:
    """Limits the rate of one user's requests."""

    def __init__(self, limits: ControlLimits) -> None:
        self._interval_s = 1 / limits.requests_per_s
        self._ahead_s = limits.burst * self._interval_s
        self._due = -math.inf

    def delay(self) -> float:
        """Count a request; return how many seconds it has to wait."""
        now = anyio.current_time()
        wait_s = max(0.0, self._due - now - self._ahead_s)
        self._due = max(self._due, now) + self._interval_s
        return wait_s


@attrs.define(eq=False)
class Connection:
    """A connection and its requests. The socket, accepted and non-blocking, is closed at the end."""

    _socket: socket.socket
    caller: Caller
    _handlers: RpcHandlers
    _limits: ControlLimits = attrs.field(kw_only=True)
    # Shared by all connections of the caller's user.
    _limiter: RateLimiter = attrs.field(kw_only=True)
    _log: Log = attrs.field(kw_only=True)
    _lines: LineBuffer = attrs.field(factory=lambda: LineBuffer(jsonrpc.MAX_REQUEST_BYTES), init=False)
    _in_flight: int = attrs.field(default=0, init=False)
    _requests: TaskGroup = attrs.field(factory=anyio.create_task_group, init=False)
    _writing: anyio.Lock = attrs.field(factory=anyio.Lock, init=False)
    _write: anyio.CancelScope = attrs.field(factory=anyio.CancelScope, init=False)
    _shutdown_deadline: float = attrs.field(default=math.inf, init=False)
    _broken: bool = attrs.field(default=False, init=False)

    async def run(self) -> None:
        """Answer requests until the input ends, a rule is broken, or the peer leaves."""
        try:
            async with self._requests:
                await self._take_requests()
        finally:
            self._socket.close()

    def set_deadline(self, deadline: float) -> None:
        """Send nothing after ``deadline``, on the event loop's clock."""
        self._shutdown_deadline = deadline
        self._write.deadline = min(self._write.deadline, deadline)

    async def _take_requests(self) -> None:
        while True:
            try:
                line = await self._next_line()
                if line is None:
                    return
                await anyio.sleep(self._limiter.delay())
                self._begin(jsonrpc.decode_request(line))
            except ControlError as exc:
                request_id = exc.request_id if isinstance(exc, RequestRefused) else None
                await self._send(partial(jsonrpc.encode_error, request_id, exc))
                if exc.code in _ENDS_CONNECTION:
                    self._log.info("control.malformed", user=self.caller.user, reason=exc)
                    return

    def _begin(self, request: Request) -> None:
        if self._in_flight >= self._limits.in_flight:
            problem = f"{self._in_flight} requests of this connection are in flight already"
            raise RequestRefused(problem, code=Code.BUSY, request_id=request.id)
        self._in_flight += 1
        self._requests.start_soon(self._answer, request)

    async def _answer(self, request: Request) -> None:
        async def notify(server: ServerInfo) -> None:
            await self._send(partial(jsonrpc.encode_progress, request.id, server))

        async def update(news: UpdateInfo) -> None:
            await self._send(partial(jsonrpc.encode_update, request.id, news))

        async def notify_script(script: ScriptProgressInfo) -> None:
            await self._send(partial(jsonrpc.encode_script_progress, request.id, script))

        try:
            result = await self._handlers.call(Call(request, self.caller, notify, update, notify_script))
        except ControlError as exc:
            await self._send(partial(jsonrpc.encode_error, request.id, exc))
        except anyio.get_cancelled_exc_class():
            goodbye = ControlError("the supervisor is shutting down", code=Code.SHUTTING_DOWN)
            await self._send(partial(jsonrpc.encode_error, request.id, goodbye))
            raise
        else:
            await self._send(partial(jsonrpc.encode_result, request.id, result))
        finally:
            self._in_flight -= 1

    async def _next_line(self) -> bytes | None:
        """Return the next line, or None at the end; raises ControlError for an unreadable one."""
        began: float | None = None
        while (line := self._lines.next_line()) is None:
            limits = self._limits
            if self._lines.partial:
                began = anyio.current_time() if began is None else began
                wait = anyio.CancelScope(deadline=began + limits.line_s)
            else:
                wait = anyio.CancelScope(deadline=anyio.current_time() + limits.idle_s)
            data = b""
            with wait, contextlib.suppress(OSError):
                data = await receive(self._socket)
            if not wait.cancelled_caught:
                if not data:
                    self._lines.feed_eof()
                    return None
                self._lines.feed(data)
            elif self._lines.partial:
                raise ControlError(f"no whole line within {limits.line_s:g} s", code=Code.TIMED_OUT)
            elif not self._in_flight:
                # Nothing to write to the log: there are clients that do no more than look on.
                idle = ControlError(f"no request within {limits.idle_s:g} s", code=Code.TIMED_OUT)
                await self._send(partial(jsonrpc.encode_error, None, idle))
                return None
        return line

    async def _send(self, encode: Callable[[], bytes]) -> None:
        """Send a line, or disconnect a peer that does not accept it in time."""
        # Shielded, since half a line would spoil all that follow. Encoded when its turn comes, so that a
        # peer that does not read costs one line of memory.
        with anyio.CancelScope(shield=True):
            async with self._writing:
                if self._broken:
                    return
                deadline = min(anyio.current_time() + self._limits.write_s, self._shutdown_deadline)
                with anyio.CancelScope(deadline=deadline) as self._write, contextlib.suppress(OSError):
                    await send_all(self._socket, encode())
                    return
                if self._write.cancelled_caught:
                    self._log.info("control.stalled", user=self.caller.user)
                self._broken = True
                self._requests.cancel_scope.cancel()
