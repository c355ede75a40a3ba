"""The accept loop of every listening socket: it outlives shortages, and peers that are gone already.

The loop is our own: a library's listener ends for good when descriptors run out, on both backends.
This one pauses and goes on; those who knock meanwhile wait in the kernel's queue.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, NoReturn

import anyio

_PAUSE_S = 0.1
"""Between attempts to accept while descriptors or memory are short."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_GONE = frozenset(
    {errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET}
)
"""Of one connection and not of the listener: Linux passes on what befell a peer that waits to be accepted,
and a firewall may forbid one (accept(2), ERRORS)."""


async def accept_forever(
    listener: socket.socket,
    take: Callable[[socket.socket, Any], None],
    *,
    exhausted: Callable[[str | None], None],
) -> NoReturn:
    """Accept until cancelled.

    Args:
        listener: listening and non-blocking.
        take: is given each accepted socket, non-blocking, and its address, and owns it; must not wait.
        exhausted: told why, once each time that the host runs short of descriptors or memory.

    Raises:
        OSError: the listener itself failed.
    """
    short = False
    while True:
        await anyio.wait_readable(listener)
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
