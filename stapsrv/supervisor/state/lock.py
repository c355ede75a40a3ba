"""A supervisor's own directory, ``STAT_PATH/USER``: its lock and its control socket.

The holder of the lock is the user's one supervisor there. A lock dies with its process, so no process that
was killed stands in the way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from stapsrv.errors import ConfigError, LifecycleError
from stapsrv.system.secure_dirs import share_with_group

# Its members may read the status of every supervisor.
GROUP = "stap-server"

_LOCK = "lock"
_MODE = 0o750


@contextlib.contextmanager
def hold_instance_lock(stat_path: Path, user: str) -> Iterator[Path]:
    """Hold the lock of ``user``'s supervisor; yields its directory.

    Raises:
        ConfigError: the directory cannot be made or used, or is not this user's alone to write to.
        LifecycleError: another supervisor holds the lock; the text has its process id.
    """
    directory = stat_path / user
    try:
        stat_path.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=_MODE)
        _check_owner(directory)
        share_with_group(directory, GROUP)
        # O_NOFOLLOW: no link leads the lock to another file.
        fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise ConfigError(
            f"cannot be used: {exc.strerror}",
            where=f"status directory {directory}",
            remedy="let the server's user write there, or set STAT_PATH to a directory where it may",
        ) from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            raise LifecycleError(
                f"a supervisor of user {user} runs already, as process {holder}",
                where=str(directory),
                remedy="command that one with stap-server",
            ) from exc
        # For people, and the message above; only the lock itself counts.
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield directory
    finally:
        os.close(fd)


def _check_owner(directory: Path) -> None:
    status = directory.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022 or not directory.is_dir():
        raise ConfigError(
            "belongs to somebody else, or others may write to it",
            where=f"status directory {directory}",
            remedy="remove it",
        )
