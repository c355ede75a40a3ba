"""A listening Unix socket as a file: made whole or not at all, and taken away only if it is ours."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from stapsrv.socket_address import address_of
from stapsrv.supervisor.seat import share_with_group

_MODE = 0o660


@contextlib.contextmanager
def open_socket_file(path: Path, *, backlog: int) -> Iterator[socket.socket]:
    """Listen at ``path``, in place of whatever is there; that nobody else listens, the caller knows.

    The file appears under its name when it accepts, with its final mode, 0660, and group, stap-server.

    Args:
        path: its name.
        backlog: connections that the kernel completes while the loop is busy.

    Returns:
        A listening, non-blocking socket, closed at the end; the file goes too if it is still this one.

    Raises:
        OSError: it cannot be made.
    """
    beside = path.with_name(f".{path.name}.new")
    made: tuple[int, int] | None = None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            beside.unlink(missing_ok=True)
            with address_of(beside) as address:
                listener.bind(address)
            # Nobody can connect before listen(), so the mode that bind() gave was never of use.
            beside.chmod(_MODE)
            share_with_group(beside)
            listener.listen(backlog)
            listener.setblocking(False)  # noqa: FBT003 - positional in the standard library
            made = _identity(beside)
            beside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        try:
            yield listener
        finally:
            # Taken away before it is closed: who finds the name finds somebody who accepts.
            with contextlib.suppress(OSError):
                if _identity(path) == made:
                    path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
