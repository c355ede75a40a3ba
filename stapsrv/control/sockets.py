"""Sending and receiving on a non-blocking socket, for both ends of a control connection.

anyio's own stream for Unix sockets is not used: on asyncio a cancellation that meets arriving data makes
its callback fail (seen with anyio 4.16).
"""

from __future__ import annotations

import socket

import anyio
import anyio.lowlevel

_READ_BYTES = 65_536


async def receive(connection: socket.socket) -> bytes:
    """Wait for data and return it; nothing when the peer sends no more.

    Raises:
        OSError: the connection is broken.

    Cancellation: no data is lost.
    """
    # A peer that always has something to say must not keep everybody else from their turn.
    await anyio.lowlevel.checkpoint()
    while True:
        try:
            return connection.recv(_READ_BYTES)
        except BlockingIOError:
            await anyio.wait_readable(connection)


async def send_all(connection: socket.socket, data: bytes) -> None:
    """Send all of ``data``.

    Raises:
        OSError: the connection is broken.

    Cancellation: part of the data may have been sent.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[connection.send(view) :]
        except BlockingIOError:
            await anyio.wait_writable(connection)
