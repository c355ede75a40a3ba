"""Which mount points changed: a mount shows other files in a directory, and inotify(7) does not report it."""

from __future__ import annotations

import os
import re
import select
from pathlib import Path

_TABLE = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_READ_BYTES = 1 << 16


class Mounts:
    """The mounts of this process's namespace; to be closed.

    Raises:
        OSError: the table cannot be read.
    """

    def __init__(self) -> None:
        self._fd = os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)
        # poll(2) reports a change once to each descriptor of the table (proc(5), mountinfo).
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._mounts = self._read()

    def close(self) -> None:
        """Close the table."""
        os.close(self._fd)

    def changed(self) -> frozenset[bytes]:
        """Return where something was mounted or unmounted since the last call."""
        if not self._poll.poll(0):
            return frozenset()
        before, self._mounts = self._mounts, self._read()
        return frozenset(point for *_mount, point in before ^ self._mounts)

    def _read(self) -> frozenset[tuple[bytes, ...]]:
        """Return of each mount its id, its parent's, the device, its root on that, and its mount point."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        text = b""
        while data := os.read(self._fd, _READ_BYTES):
            text += data
        return frozenset(tuple(map(_unescaped, line.split(b" ", 5)[:5])) for line in text.splitlines())


def _unescaped(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field)
