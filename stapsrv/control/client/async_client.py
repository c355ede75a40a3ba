"""The client for anyio programs, on asyncio or Trio."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.lowlevel

from stapsrv.control.client import core
from stapsrv.control.client.core import ACTION_S, REPLY_S, Call, Exchange, Ids, OnProgress, connect_error
from stapsrv.control.protocol.jsonrpc import MAX_REPLY_BYTES, LineBuffer
from stapsrv.control.protocol.schema import HelloInfo, OutcomeInfo, SupervisorInfo, WishInfo
from stapsrv.control.server.connection import receive, send_all
from stapsrv.system.unix_socket import address_of

_RETRY_S = 0.02

_Result = TypeVar("_Result")


async def connect(path: Path, *, timeout_s: float = REPLY_S) -> ControlClient:
    """Connect to a supervisor.

    Args:
        path: of the control socket.
        timeout_s: for connecting.

    Returns:
        A client, to be closed or used as an asynchronous context manager.

    Raises:
        SupervisorNotRunning: nobody listens there.
        ControlError: this user may not connect (NOT_PERMITTED), or it took too long (TIMED_OUT).

    Example::

        async with await connect(Path("/run/stap-server/stap-server/control.sock")) as client:
            for outcome in await client.restart("all", timeout_s=60):
                print(outcome["error"] or "serves again")
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)  # noqa: FBT003 - positional in the standard library
        with address_of(path) as address, anyio.fail_after(timeout_s):
            await _connect(connection, address)
    except OSError as exc:
        connection.close()
        raise connect_error(exc, path) from exc
    except BaseException:
        connection.close()
        raise
    return ControlClient(connection)


class ControlClient:
    """A connection to one supervisor; made by :func:`connect`.

    One call at a time: those of several tasks wait for each other, so a program that wants to look on
    while it acts opens two. A call that is cancelled leaves a client that can be used; what it began
    in the supervisor goes on. Parameters, results and errors are those of
    :class:`~stapsrv.control.client.sync.SyncControlClient`.

    Args:
        connection: to a control socket, non-blocking; closed with this client.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lines = LineBuffer(MAX_REPLY_BYTES)
        self._last_id = 0
        self._turn = anyio.Lock()
        self._half_sent = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hang up; commands under way go on."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
        self._socket.close()
        await anyio.lowlevel.checkpoint()

    async def hello(self) -> HelloInfo:
        """Ask who answers, which protocol version it speaks, and what this peer may do."""
        return await self.perform(core.HELLO)

    async def status(self) -> SupervisorInfo:
        """Return the supervisor and all its servers as they are now."""
        return await self.perform(core.STATUS)

    async def start(
        self,
        servers: Sequence[WishInfo],
        *,
        timeout_s: float = ACTION_S,
        on_progress: OnProgress | None = None,
    ) -> list[OutcomeInfo]:
        """Start servers that do not run yet; return when each serves or has failed."""
        call = core.start(servers, timeout_s=timeout_s, on_progress=on_progress)
        return (await self.perform(call, on_progress))["outcomes"]

    async def stop(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Stop servers; return when each is gone. Stopping again ends the requests that still run."""
        call = core.command("stop", ids, timeout_s=timeout_s, on_progress=on_progress)
        return (await self.perform(call, on_progress))["outcomes"]

    async def restart(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Stop and start servers, which keep their ids and ports."""
        call = core.command("restart", ids, timeout_s=timeout_s, on_progress=on_progress)
        return (await self.perform(call, on_progress))["outcomes"]

    async def drain(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Let servers finish what they have and take no more; return when they are idle."""
        call = core.command("drain", ids, timeout_s=timeout_s, on_progress=on_progress)
        return (await self.perform(call, on_progress))["outcomes"]

    async def undrain(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Let drained servers accept again."""
        call = core.command("undrain", ids, timeout_s=timeout_s, on_progress=on_progress)
        return (await self.perform(call, on_progress))["outcomes"]

    async def reload(
        self,
        config_file: Path | None = None,
        *,
        force: bool = False,
        timeout_s: float = ACTION_S,
        on_progress: OnProgress | None = None,
    ) -> list[OutcomeInfo]:
        """Have the configuration read again, and the servers made what it says; unchanged ones go on."""
        call = core.reload(config_file, force=force, timeout_s=timeout_s, on_progress=on_progress)
        return (await self.perform(call, on_progress))["outcomes"]

    async def end(self, *, timeout_s: float = ACTION_S) -> None:
        """Have the supervisor stop all servers and end; return when it has."""
        await self.perform(core.END)
        try:
            with anyio.fail_after(timeout_s):
                while await receive(self._socket):
                    pass
        except TimeoutError as exc:
            raise core.still_there(timeout_s) from exc
        except ConnectionResetError:
            return

    async def perform(self, call: Call[_Result], on_progress: OnProgress | None = None) -> _Result:
        """Carry out any call, such as one that this class has no method for."""
        async with self._turn:
            self._last_id += 1
            exchange = Exchange(call, self._last_id)
            deadline = anyio.current_time() + call.wait_s
            async with _bounded(exchange, deadline):
                await self._send(exchange.request)
            while exchange.result is None:
                async with _bounded(exchange, deadline):
                    line = await self._next_line()
                step = exchange.take(line)
                if step is not None and on_progress is not None:
                    on_progress(step)
            return exchange.result

    async def _send(self, data: bytes) -> None:
        if self._half_sent:
            raise ConnectionResetError("an earlier request was cancelled half way")
        self._half_sent = True
        # A supervisor that hung up may have said why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await send_all(self._socket, data)
        self._half_sent = False

    async def _next_line(self) -> bytes:
        while (line := self._lines.next_line()) is None:
            data = await receive(self._socket)
            if not data:
                raise ConnectionResetError("it was closed")
            self._lines.feed(data)
        return line


async def _connect(connection: socket.socket, address: str) -> None:
    while True:
        try:
            connection.connect(address)
        except BlockingIOError:
            # The supervisor's queue is full, and nobody tells when there is room.
            await anyio.sleep(_RETRY_S)
        else:
            return


@contextlib.asynccontextmanager
async def _bounded(exchange: Exchange[_Result], deadline: float) -> AsyncIterator[None]:
    """Bound the block by a deadline on the event loop's clock, and say what a failure in it means."""
    with exchange.errors(), anyio.fail_after(deadline - anyio.current_time()):
        try:
            yield
        except anyio.ClosedResourceError as exc:
            raise ConnectionResetError("this client was closed") from exc
