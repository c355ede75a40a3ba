"""A supervisor's own directory, ``STAT_PATH/USER``: its lock and its control socket.

The holder of the lock is the user's one supervisor there. A lock dies with its process, so no process that
was killed stands in the way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from stapsrv.errors import ConfigError, LifecycleError
from stapsrv.system.lock_files import is_current, remove_locked_directory
from stapsrv.system.secure_dirs import share_with_group
from stapsrv.system.trusted_files import open_owned_directory

# Its members may read the status of every supervisor.
GROUP = "stap-server"

_LOCK = "lock"
# Of a command that starts a supervisor (stapsrv.control.client.launch).
_START_LOCK = "start.lock"
_MODE = 0o750
# Each time another supervisor ended between two steps.
_TRIES = 100


class InstanceLock:
    """The lock of a supervisor, held from one run of a process to the next where its directory is the same.

    In between nobody else can start a supervisor in its place. :meth:`close` ends it.
    """

    def __init__(self) -> None:
        self._held: tuple[Path, int] | None = None

    def hold(self, directory: Path) -> None:
        """Hold the lock in ``STAT_PATH/USER``, and no other; :meth:`close` removes the directory.

        Raises:
            ConfigError: the directory cannot be made or used, or is not this user's alone to write to.
            LifecycleError: another supervisor holds the lock; the text has its process id.
        """
        if self._held is None or self._held[0] != directory:
            self.close()
            try:
                fd = _take_lock(directory)
                self._held = directory, fd
                # For people, and the message of others; only the lock itself counts.
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            except OSError as exc:
                raise ConfigError(
                    f"cannot be used: {exc.strerror}",
                    where=f"status directory {directory}",
                    remedy="let the server's user write there, or set STAT_PATH to a directory where it may",
                ) from exc

    def close(self) -> None:
        """Let go of the lock, if it is held, and remove its directory."""
        if self._held is not None:
            directory, fd = self._held
            self._held = None
            # The original takes whatever is in STAT_PATH for one of its servers.
            remove_locked_directory(directory, held=_LOCK, other=_START_LOCK, uid=os.geteuid())
            os.close(fd)


def _take_lock(directory: Path) -> int:
    for _ in range(_TRIES):
        directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=_MODE)
        with contextlib.suppress(FileNotFoundError):
            fd = _open_lock(directory)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
                os.close(fd)
                raise LifecycleError(
                    f"a supervisor of user {directory.name} runs already, as process {holder}",
                    where=str(directory),
                    remedy="command that one with stap-server",
                ) from exc
            if is_current(fd, directory / _LOCK):
                return fd
            os.close(fd)
    raise TimeoutError(errno.ETIMEDOUT, "other supervisors begin and end there all the time")


def _open_lock(directory: Path) -> int:
    try:
        parent = open_owned_directory(directory, os.geteuid())
    except (PermissionError, NotADirectoryError) as exc:
        raise _not_ours(directory) from exc
    try:
        if os.fstat(parent).st_mode & 0o022:
            raise _not_ours(directory)
        share_with_group(parent, GROUP)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(_LOCK, flags, 0o600, dir_fd=parent)
    finally:
        os.close(parent)


def _not_ours(directory: Path) -> ConfigError:
    return ConfigError(
        "belongs to somebody else, or others may write to it",
        where=f"status directory {directory}",
        remedy="remove it",
    )
