"""Accepts connections in a loop that outlives shortages, and denies some for good.

The loop is our own: a library's listener ends for good when descriptors run out, on both backends. This one
pauses and goes on; peers that connect meanwhile wait in the kernel's queue.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Any, NoReturn

import anyio
import anyio.lowlevel

from stapsrv.system.readiness import wait_readable
from stapsrv.system.streams import adopt

# A TLS record: alert, of two bytes: fatal, access_denied (49).
_ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
# How long a client may take to read that and leave.
_GOODBYE_S = 2.0


# A reset would have the client come back (PROTOCOL, the connection), and so might a connection that is closed
# while its first bytes are under way. A TLS alert before the handshake is final (RFC 8446, 6.2).
async def deny(connection: socket.socket) -> None:
    """Say that access is denied, wait for the client to leave, 2 s at most, and close in any case."""
    with contextlib.suppress(OSError, anyio.BrokenResourceError):
        stream = await adopt(connection)
        try:
            with anyio.move_on_after(_GOODBYE_S):
                await stream.send(_ACCESS_DENIED)
                try:
                    await stream.send_eof()
                except RuntimeError:
                    # uvloop's own, where the client has reset the connection by now.
                    return
                # Closing on bytes that were not read would reset the connection, and the alert with it.
                with contextlib.suppress(anyio.EndOfStream):
                    while True:
                        # The stream's own need not be one while data keeps coming.
                        await anyio.lowlevel.checkpoint()
                        await stream.receive()
        finally:
            await anyio.aclose_forcefully(stream)


# Between attempts to accept while descriptors or memory are short.
_PAUSE_S = 0.1

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Of one connection and not of the listener: Linux passes on the error of a peer that waits to be accepted,
# and a firewall may forbid one (accept(2), ERRORS).
_GONE = frozenset(
    {errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET}
)


async def accept_forever(
    listener: socket.socket,
    take: Callable[[socket.socket, Any], None],
    *,
    exhausted: Callable[[str | None], None],
) -> NoReturn:
    """Accept until cancelled, also in a flood; ``take`` owns each socket, non-blocking, and must not wait.

    ``exhausted`` gets the reason, once each time that descriptors or memory run short.

    Raises:
        OSError: the listener itself failed.
    """
    short = False
    while True:
        await wait_readable(listener)
        try:
            accepted, address = listener.accept()
        except BlockingIOError:
            continue
        except OSError as exc:
            if exc.errno in _GONE:
                continue
            if exc.errno not in _EXHAUSTED:
                raise
            if not short:
                exhausted(exc.strerror)
            short = True
            await anyio.sleep(_PAUSE_S)
            continue
        short = False
        try:
            accepted.setblocking(False)  # noqa: FBT003 - positional in the standard library
            take(accepted, address)
        except BaseException:
            accepted.close()
            raise
