"""An address of a Unix socket that fits into the kernel's 108 bytes. A light module.

A listening Unix socket as a file: made whole or not at all, and taken away only if it is ours.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from stapsrv.system.secure_dirs import share_with_group

_MOST_ADDRESS_BYTES = 107
"""Of sockaddr_un's path, less the NUL at its end."""


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Hold an address of the socket ``path`` that ``bind`` and ``connect`` take, however long it is.

    Raises:
        OSError: the directory of a long path cannot be opened.
    """
    if len(os.fsencode(path)) <= _MOST_ADDRESS_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


_MODE = 0o660


@contextlib.contextmanager
def open_socket_file(path: Path, *, group: str, backlog: int) -> Iterator[socket.socket]:
    """Listen at ``path``, in place of whatever is there; that nobody else listens, the caller knows.

    The file appears under its name when it accepts, with its final mode, 0660, and its group.

    Args:
        path: its name.
        group: may connect; left out where this user is no member of it.
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
            share_with_group(beside, group)
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
