"""Unix sockets as files: addresses of any length, and listeners that appear complete and clean up."""

from __future__ import annotations

# Not socket, which spends more time on enums of its constants than all the rest of a status.
import _socket
import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

# Of sockaddr_un's path, less the NUL at its end.
_MAX_ADDRESS_BYTES = 107
_MODE = 0o660
# Process id, user id and group id, four bytes each.
_UCRED_BYTES = 12


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
def address_of_socket(path: Path) -> Iterator[str]:
    """Hold an address for ``connect`` of the socket that ``path`` names itself, and not by a link.

    Raises:
        OSError: there is none.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConnectionRefusedError("it is no socket")
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def peer_uid(connection: _socket.socket) -> int:
    """Return the user id of the process that listens, when it began to (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED_BYTES)
    return int.from_bytes(credentials[4:8], sys.byteorder)


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
            with address_of_socket(temporary) as made_here:
                os.chmod(made_here, _MODE)  # noqa: PTH101 - by descriptor: the name may lead elsewhere by now
                share_with_group(Path(made_here), group)
                made = os.stat(made_here)  # noqa: PTH116
            listener.listen(backlog)
            listener.setblocking(False)  # noqa: FBT003 - positional in the standard library
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
