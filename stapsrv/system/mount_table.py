"""Finds the mount points that changed: a mount shows other files, and inotify(7) does not report it."""

from __future__ import annotations

import re
import select
from pathlib import Path

_TABLE = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mounts:
    """The mounts of this process's namespace; to be closed.

    Raises:
        OSError: the table cannot be read.
    """

    def __init__(self) -> None:
        self._table = _TABLE.open("rb", buffering=0)
        # poll(2) reports a change once to each descriptor of the table (proc(5), mountinfo).
        self._poll = select.poll()
        self._poll.register(self._table, select.POLLPRI)
        self._mounts = self._read()

    def close(self) -> None:
        """Close the table."""
        self._table.close()

    def changed(self) -> frozenset[bytes]:
        """Return where something was mounted or unmounted since the last call."""
        if not self._poll.poll(0):
            return frozenset()
        before, self._mounts = self._mounts, self._read()
        return frozenset(point for *_mount, point in before ^ self._mounts)

    def _read(self) -> frozenset[tuple[bytes, ...]]:
        """Return of each mount its id, its parent's, the device, its root on that, and its mount point."""
        self._table.seek(0)
        lines = self._table.readall().splitlines()
        return frozenset(tuple(map(_unescaped, line.split(b" ", 5)[:5])) for line in lines)


def _unescaped(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field)
