"""Unix sockets as files: addresses of any length, and listeners that appear complete and clean up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

# Of sockaddr_un's path, less the NUL at its end.
_MAX_ADDRESS_BYTES = 107
_MODE = 0o660


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Hold an address of the socket ``path`` that ``bind`` and ``connect`` take, however long the path is.

    Raises:
        OSError: the directory of a long path cannot be opened.
    """
    if len(os.fsencode(path)) <= _MAX_ADDRESS_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


@contextlib.contextmanager
def open_socket_file(path: Path, *, group: str, backlog: int) -> Iterator[socket.socket]:
    """Listen at ``path``, replacing what is there: the caller knows that nobody listens on it.

    The file appears when it accepts connections, with mode 0660 and, if this user is a member of it, its
    group. The listener is non-blocking and closed at the end, when the file is removed if it is still ours.

    Raises:
        OSError: it cannot be made.
    """
    # Late: every stap-server status loads this module for the address alone, and socket takes longest of all.
    import socket  # noqa: PLC0415

    from stapsrv.system.secure_dirs import share_with_group  # noqa: PLC0415

    temporary = path.with_name(f".{path.name}.new")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            temporary.unlink(missing_ok=True)
            with address_of(temporary) as address:
                listener.bind(address)
            # Nobody can connect before listen(), so the mode that bind() gave was never of use.
            temporary.chmod(_MODE)
            share_with_group(temporary, group)
            listener.listen(backlog)
            listener.setblocking(False)  # noqa: FBT003 - positional in the standard library
            made = temporary.lstat()
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        try:
            yield listener
        finally:
            # Removed before it is closed: a client that finds the name finds a listener.
            with contextlib.suppress(OSError):
                if os.path.samestat(path.lstat(), made):
                    path.unlink()
