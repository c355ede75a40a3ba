"""Performs the steps of an exchange with anyio, on asyncio and Trio, each within its time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import anyio

from stapsrv.client.address import Address
from stapsrv.client.exchange import Close, Connect, Exchange, Receive, Send, Sleep, Step
from stapsrv.system.readiness import wait_readable, wait_writable

_BLOCK_BYTES = 64 * 1024


async def run(steps: Exchange) -> bytes:
    """Perform an exchange, and return what it returns or raise what it raises.

    Cancellation: the connection is closed, at which the server ends the compile.
    """
    connection = _Connection()
    try:
        with contextlib.closing(steps):
            step = next(steps)
            while True:
                try:
                    received = await connection.perform(step)
                except OSError as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(received)
    except StopIteration as end:
        response: bytes = end.value
        return response
    finally:
        connection.close()


class _Connection:
    """The socket of one exchange, while there is one."""

    # Not anyio's streams: they lose the reason why a connection was not made, and take one that is reset at
    # once for no connection. A reset has a meaning here.

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def perform(self, step: Step) -> bytes:
        if isinstance(step.action, Sleep):
            await anyio.sleep(step.timeout_s)
            return b""
        with anyio.fail_after(step.timeout_s):
            match step.action:
                case Connect(address):
                    self.close()
                    self._socket = await _connect(address)
                case Close():
                    self.close()
                case Send(data):
                    await self._send(data)
                case Receive():
                    return await self._receive()
        return b""

    async def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            connected = self._connected()
            await wait_writable(connected)
            with contextlib.suppress(BlockingIOError):
                rest = rest[connected.send(rest) :]

    async def _receive(self) -> bytes:
        while True:
            connected = self._connected()
            await wait_readable(connected)
            with contextlib.suppress(BlockingIOError):
                return connected.recv(_BLOCK_BYTES)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionResetError
        return self._socket


async def _connect(address: Address) -> socket.socket:
    """Connect to the first of a host's addresses that takes it."""
    failure: OSError = OSError(f"{address.host} has no address")
    for family, kind, protocol, _name, target in await anyio.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    ):
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(0.0)
            error = connected.connect_ex(target)
            if error == errno.EINPROGRESS:
                await wait_writable(connected)
                error = connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not error:
                return connected
        except BaseException:
            connected.close()
            raise
        connected.close()
        # Of the class that fits: a connection may be refused, or reset already.
        failure = OSError(error, os.strerror(error))
    raise failure
