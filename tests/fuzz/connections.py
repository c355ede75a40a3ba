"""One connection of the control socket, from the first byte to its end, without a supervisor behind it."""

from __future__ import annotations

import socket

import anyio
from kit.service import LogLines
from kit.supervisor import DEFAULTS, FakeSupervisor, server_status

from stapsrv.control.server.auth import Access
from stapsrv.control.server.connection import Connection, ControlLimits, RateLimiter, receive, send_all
from stapsrv.control.server.handlers import Caller, RpcHandlers
from stapsrv.observe.feed import LiveFeed

_WHOLE_S = 10.0


async def converse(data: bytes) -> bytes:
    """Send bytes and the end of them to a connection; return all that comes back.

    Raises:
        TimeoutError: it did not end.
        AssertionError: something crashed.
    """
    ours, theirs = socket.socketpair()
    limits = ControlLimits(requests_per_s=1e6, burst=1_000_000)
    lines = LogLines()
    supervisor = FakeSupervisor(server_status(7), server_status(8))
    came = bytearray()
    with ours, theirs, anyio.fail_after(_WHOLE_S):
        for end in (ours, theirs):
            end.setblocking(False)
        async with anyio.create_task_group() as tasks:
            methods = RpcHandlers(
                supervisor,
                feed=LiveFeed(supervisor.status, supervisor.activity),
                reload=supervisor.reload,
                scripts=supervisor.scripts,
                defaults=DEFAULTS,
                tasks=tasks,
                log=lines.log,
            )
            connection = Connection(
                theirs,
                Caller("me", Access.ALL),
                methods,
                limits=limits,
                limiter=RateLimiter(limits),
                log=lines.log,
            )
            tasks.start_soon(connection.run)
            tasks.start_soon(_send, ours, data)
            while chunk := await _received(ours):
                came += chunk
    assert not [event for event in lines.events() if "crashed" in str(event)]
    return bytes(came)


async def _send(connection: socket.socket, data: bytes) -> None:
    try:
        await send_all(connection, data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        # It had enough of us before the end.
        return


async def _received(connection: socket.socket) -> bytes:
    try:
        return await receive(connection)
    except ConnectionError:
        return b""
