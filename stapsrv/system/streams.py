"""Streams over connections that were accepted, whose peers may have left by then."""

from __future__ import annotations

import errno
import os
import socket

from anyio.abc import SocketStream


async def adopt(connection: socket.socket) -> SocketStream:
    """Return a stream that owns an accepted connection; where that fails, the connection is closed.

    Raises:
        ConnectionResetError: the peer has reset it, perhaps before it was accepted.
    """
    # The kernel knows no peer of such a connection any more: AnyIO takes that for a wrong socket, and raises
    # ValueError; an event loop that asks raises OSError (ENOTCONN).
    try:
        return await SocketStream.from_socket(connection)
    except BaseException as exc:
        is_reset = not _has_peer(connection)
        connection.close()
        if is_reset and isinstance(exc, ValueError | OSError):
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from exc
        raise


def _has_peer(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True
