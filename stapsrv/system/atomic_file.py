"""Files that appear whole: written beside their name and renamed to it, or made with their final mode."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, content: str | bytes, *, mode: int = 0o600) -> None:
    """Write a file in one step: readers get the old content or the new one, even after a crash.

    The file need not exist, but its directory must. The mode is set whatever the umask is.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            os.fchmod(fd, mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def create_file(path: Path, content: bytes, *, mode: int) -> None:
    """Create a file and wait until it is on the disk; its mode is right from the start.

    Raises:
        OSError: it exists already, or cannot be written; nothing is left of it.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(content)
            file.flush()
            os.fsync(fd)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk, so that a power cut cannot leave it empty."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
