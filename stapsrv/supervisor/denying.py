"""Telling a client that it may not use a server, so that it does not try again.

A reset would have the client come back (PROTOCOL, the connection), and so might a connection that is
closed while its first bytes are under way. A TLS alert before the handshake is final, and the client says
what it means: "access was denied" (RFC 8446, 6.2).
"""

from __future__ import annotations

import contextlib
import socket

import anyio
from anyio.abc import SocketStream

_ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
"""A TLS record: alert, of two bytes: fatal, access_denied (49)."""
_GOODBYE_S = 2.0
"""How long a client may take to read that and leave."""


async def deny(connection: socket.socket) -> None:
    """Say that access is denied, wait for the client to leave, and close; takes 2 s at most.

    Args:
        connection: accepted and non-blocking; closed whatever happens.
    """
    with contextlib.closing(connection), contextlib.suppress(OSError, anyio.BrokenResourceError):
        stream = await SocketStream.from_socket(connection.dup())
        try:
            with anyio.move_on_after(_GOODBYE_S):
                await stream.send(_ACCESS_DENIED)
                await stream.send_eof()
                # Closing on bytes that were not read would reset the connection, and the alert with it.
                with contextlib.suppress(anyio.EndOfStream):
                    while True:
                        await stream.receive()
        finally:
            await anyio.aclose_forcefully(stream)
