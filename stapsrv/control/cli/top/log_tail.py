"""The end of a log file that another user may own: read without waiting, whatever its name leads to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stapsrv.text import printable

_MAX_BYTES = 64 * 1024


def log_tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log, at most ``lines``, or one that says why they cannot be read."""
    try:
        data = _read_end(path)
    except OSError as exc:
        return [f"{path}: {exc.strerror}"]
    if data is None:
        return [f"{path} is no file: what is logged there cannot be shown"]
    text = data.decode("utf-8", errors="replace")
    return [printable(line) for line in text.splitlines()[-lines:]]


def _read_end(path: Path) -> bytes | None:
    # A pipe would hold up who opens it.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        file.seek(max(0, status.st_size - _MAX_BYTES))
        data = file.read(_MAX_BYTES)
        if status.st_size > _MAX_BYTES:
            # Of the first line only a part is there.
            data = data.partition(b"\n")[2]
        return data
