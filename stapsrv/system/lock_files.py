"""Lock files that their last holder removes, and the directory with them.

A lock counts only while its name leads to it: the file that a process waited for may have been removed by the
holder before. So a process that gets one looks again (:func:`is_current`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from stapsrv.system.trusted_files import open_owned_directory


def is_current(lock: int, path: Path) -> bool:
    """Whether ``path`` still names the open file that was locked."""
    try:
        return os.path.samestat(os.fstat(lock), path.lstat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked_unless_missing(directory: Path, name: str, *, uid: int) -> Iterator[None]:
    """Hold a lock file of user ``uid``, if it and its directory exist.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened, or is another user's.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(FileNotFoundError):
            parent = open_owned_directory(directory, uid)
            opened.callback(os.close, parent)
            lock = os.open(name, flags, dir_fd=parent)
            opened.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def remove_locked_directory(
    directory: Path, files: Iterable[str] = (), *, held: str, other: str, uid: int
) -> None:
    """Remove a directory of user ``uid`` with two lock files and ``files``; never raises.

    The caller holds the lock ``held``; while another process holds ``other``, or the directory has further
    files, it stays.
    """
    with contextlib.suppress(OSError), locked_unless_missing(directory, other, uid=uid):
        parent = open_owned_directory(directory, uid)
        try:
            for name in (*files, other, held):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=parent)
        finally:
            os.close(parent)
        directory.rmdir()
