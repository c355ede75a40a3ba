"""The sinks of log entries: a file that survives rotation, an inherited descriptor, the systemd journal.

A sink that cannot take an entry raises OSError: a server goes on without its log. Only a file system makes it
wait, which is why a process writes its logs in threads (:mod:`stapsrv.observe.writer`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import socket
import sys
from array import array
from pathlib import Path
from typing import TypeAlias

from stapsrv.errors import ConfigError
from stapsrv.system.trusted_files import open_appending

_STDERR = 2
_NAMES = {"/dev/stdout": 1, "/dev/stderr": _STDERR}
_NUMBERED = re.compile(r"/(?:dev/fd|proc/self/fd)/(\d{1,6})")
# A pipe that is ready takes at least as many without waiting (pipe(7)).
_PIECE_BYTES = select.PIPE_BUF


# Such a name is never opened again: behind it may be a pipe or a socket of another program, which cannot be
# opened, and whose reader rotates it.
def stream_descriptor(path: Path) -> int | None:
    """Return the descriptor that a path such as ``/dev/stdout`` stands for; None for a file of its own."""
    text = str(path)
    numbered = _NUMBERED.fullmatch(text)
    return int(numbered[1]) if numbered else _NAMES.get(text)


def standard_error() -> StreamSink:
    """Return standard error as a sink; raise ConfigError if this process was started without one."""
    # Where it was closed at the start, something else may have its number by now.
    return StreamSink(Path("/dev/stderr"), -1 if sys.stderr is None else _STDERR)


class StreamSink:
    """Writes entries to an inherited descriptor, and never waits for its reader.

    Entries that do not fit while the reader is behind are refused; one that was begun is ended first.

    Raises:
        ConfigError: the descriptor is closed, or not for writing.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._begun = b""
        try:
            # A descriptor of our own: nobody else's file can come to stand under its number.
            self._fd = os.dup(descriptor)
            os.write(self._fd, b"")
        except OSError as exc:
            raise ConfigError(
                f"cannot be written ({exc.strerror})",
                where=f"log {path}",
                remedy="start the server with it open, or give a log file",
            ) from exc
        self._readiness = select.poll()
        self._readiness.register(self._fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """Write an entry, or begin to; raise OSError if nothing of it was taken."""
        # One that was begun is ended first.
        self._begun = self._send(self._begun)
        rest = data if self._begun else self._send(data)
        if len(rest) == len(data):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._begun = rest

    def reopen(self) -> None:
        """Do nothing: who reads it keeps the lines."""

    def close(self) -> None:
        """Close this process's own descriptor."""
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _send(self, data: bytes) -> bytes:
        with contextlib.suppress(OSError):
            # A write to a pipe that is full would wait for its reader; poll(2) asks first.
            while data and self._readiness.poll(0):
                data = data[os.write(self._fd, data[:_PIECE_BYTES]) :]
        return data


JOURNAL = Path("/run/systemd/journal/socket")

_TOO_LONG = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class FileSink:
    """Appends to a file by its name; when that is moved away (log rotation), a new one is begun.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._is_torn = False
        try:
            self._open()
        except OSError as exc:
            raise ConfigError(
                f"cannot be written ({exc.strerror})",
                where=f"log file {path}",
                remedy="give a file in a directory that the server's user may write to, with --log",
            ) from exc

    def write(self, data: bytes) -> None:
        """Append an entry, in one piece where that is possible, to a file of the expected name."""
        fd = self._fd
        if fd is None or self._moved_away(fd):
            fd = self._open()
        # What is there of a line that did not fit must not run into the next one.
        data = b"\n" + data if self._is_torn else data
        done = 0
        try:
            while done < len(data):
                done += os.write(fd, data[done:])
        finally:
            self._is_torn = done < len(data) if done else self._is_torn

    def reopen(self) -> None:
        """Begin again at the file's name; on failure the open file stays in use."""
        with contextlib.suppress(OSError):
            self._open()

    def close(self) -> None:
        """Close the file; later entries open it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        # Appending: other processes may log to the same file.
        fd = open_appending(self.path, mode=0o644)
        self.close()
        self._fd, self._is_torn = fd, False
        return fd

    def _moved_away(self, fd: int) -> bool:
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(fd))
        except FileNotFoundError:
            return True


class JournalSink:
    """Sends entries to the systemd journal, by its own protocol: fields and all.

    An entry that is too long for a datagram travels in a sealed memory file, whose descriptor is sent in its
    place (systemd, Native Journal Protocol).

    Raises:
        ConfigError: nobody listens at ``path``, the journal's socket.
    """

    def __init__(self, path: Path = JOURNAL) -> None:
        self._path = str(path)
        try:
            with _datagram_socket() as probe:
                probe.connect(self._path)
        except OSError as exc:
            raise ConfigError(
                f"the systemd journal does not listen at {path} ({exc.strerror})",
                where="log format journal",
                remedy="use classic or json where systemd does not run",
            ) from exc
        self._socket = _datagram_socket()

    def write(self, data: bytes) -> None:
        """Send an entry; by name each time, since the journal may be started again."""
        try:
            self._socket.sendto(data, self._path)
        except OSError as exc:
            if exc.errno not in _TOO_LONG:
                raise
            self._send_file(data)

    def reopen(self) -> None:
        """Go on: the journal rotates by itself."""

    def close(self) -> None:
        """Send no more."""
        self._socket.close()

    # The journal takes what is too long for a datagram as a sealed memory file (Native Journal Protocol).
    def _send_file(self, data: bytes) -> None:
        fd = os.memfd_create("log-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))
            self._socket.sendmsg([b""], [rights], 0, self._path)


def _datagram_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)  # noqa: FBT003 - positional in the standard library
    return made


Sink: TypeAlias = FileSink | StreamSink | JournalSink
