"""The control socket as a file."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from stapsrv.errors import ConfigError
from stapsrv.supervisor.socket_file import open_socket_file

_BACKLOG = 128
"""Connections that the kernel completes while the loop is busy: as many as are let in at once."""


@contextlib.contextmanager
def open_control_socket(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path``, in place of whatever stale socket is there.

    The file appears under its name when it accepts, with its final mode and group. The caller holds the
    lock of the directory (:func:`stapsrv.supervisor.seat.take_seat`), so nobody else is alive there.

    Returns:
        A listening, non-blocking socket, closed at the end; the file goes too if it is still this one.

    Raises:
        ConfigError: it cannot be made.
    """
    with contextlib.ExitStack() as held:
        try:
            listener = held.enter_context(open_socket_file(path, backlog=_BACKLOG))
        except OSError as exc:
            raise ConfigError(
                f"cannot be made: {exc.strerror}",
                where=f"control socket {path}",
                remedy="let the server's user write to its directory, or set STAT_PATH to another one",
            ) from exc
        yield listener
