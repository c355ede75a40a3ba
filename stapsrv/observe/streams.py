"""Log entries to a descriptor that this process was started with: a container's standard output, say.

Such a name is never opened again: what stands behind it may be a pipe or a socket of somebody else's,
which cannot be, and rotates for whoever reads it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import sys
from pathlib import Path

from stapsrv.errors import ConfigError

_STDERR = 2
_NAMES = {"/dev/stdout": 1, "/dev/stderr": _STDERR}
_NUMBERED = re.compile(r"/(?:dev/fd|proc/self/fd)/(\d{1,6})")
_PIECE_BYTES = select.PIPE_BUF
"""A pipe that is ready takes at least as many without waiting (pipe(7))."""


def stream_descriptor(path: Path) -> int | None:
    """Return the descriptor that a path such as ``/dev/stdout`` stands for; None for a file of its own."""
    text = str(path)
    numbered = _NUMBERED.fullmatch(text)
    return int(numbered[1]) if numbered else _NAMES.get(text)


def standard_error() -> StreamSink:
    """Return standard error as a sink.

    Raises:
        ConfigError: this process was started without one.
    """
    # Where it was closed at the start, something else may have its number by now.
    return StreamSink(Path("/dev/stderr"), -1 if sys.stderr is None else _STDERR)


class StreamSink:
    """Writes entries to an inherited descriptor, and never waits for who reads them.

    Entries that do not fit while the reader is behind are refused; one that was begun is ended first.

    Args:
        path: its name.
        descriptor: what the name stands for.

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
        """Write an entry, or begin to.

        Raises:
            OSError: nobody takes it now.
        """
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
        """Write what is taken at once; return the rest."""
        with contextlib.suppress(OSError):
            while data and self._readiness.poll(0):
                data = data[os.write(self._fd, data[:_PIECE_BYTES]) :]
        return data
