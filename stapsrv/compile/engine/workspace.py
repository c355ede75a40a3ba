"""Temporary directories: one for each request, all in the directory of this process.

``$TMPDIR/stap-server.XXXXXX``, or one like it in memory, belongs to a process as long as that holds a lock on
the file ``lock`` in it. A process that was killed leaves its directory behind, unlocked; the next one removes
it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import stat
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.engine.tmpfs import Tmpfs
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.system import trees
from stapsrv.system.blocking import BlockingCalls

_PREFIX = "stap-server."
_REQUEST = "request."
_LOCK = "lock"
_ATTEMPTS = 3
# The process that made an older one, which still has its hidden name, was killed meanwhile.
_MAKING_S = 60.0
# How long a request waits for its directory to be gone.
_REMOVAL_S = 10.0


class Workspace:
    """This process's directory, made by :meth:`open`, and again if somebody removed it; to be closed."""

    def __init__(self, path: Path, *lock_fds: int, kept_parent: Path | None = None) -> None:
        self.path = path
        # For calls on its files, which may be on a file system that hangs.
        self.files = BlockingCalls()
        self._kept_parent = kept_parent or path.parent
        self._lock_fds = lock_fds
        self._remaking = threading.Lock()
        self._closed = False
        # Requests' directories that are to be removed; any thread takes one from it, or puts it back.
        self._unremoved: deque[Path] = deque()

    @classmethod
    def open(cls, parent: Path | None = None, *, memory: Path | None = None) -> Workspace:
        """Remove the directories of dead processes, and make one; raises ConfigError if none can be made.

        It is made in ``memory`` if that is given; else in ``parent``, where directories are kept (``-k``).
        """
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        for directory in (parent, Tmpfs().directory):
            sweep(directory)
        try:
            return cls(*_make(memory or parent), kept_parent=parent)
        except OSError as exc:
            problem = f"no temporary directory can be made: {exc.strerror}"
            remedy = "point TMPDIR to a directory that the server's user may write to"
            raise ConfigError(problem, where=str(memory or parent), remedy=remedy) from exc

    @property
    def is_in_memory(self) -> bool:
        """Whether it is not on disk, where directories are kept."""
        return self.path.parent != self._kept_parent

    @contextlib.asynccontextmanager
    async def request_directory(self, *, keep: bool, log: Log | None = None) -> AsyncIterator[Path]:
        """Hold an empty directory for the block; with ``keep`` (``-k``) it stays, and ``log`` says where.

        A TranslatorError says that none can be made, or not in time.
        Cancellation: it is removed; where that takes long, nobody waits for the end.
        """
        make = functools.partial(self.make_request_directory, keep=keep)
        with self.translate_errors():
            path = await self.files.run(make, cleanup=None if keep else self.remove)
        try:
            yield path
        finally:
            if not keep:
                self._unremoved.append(path)
                # Where that fails, the next removal or the end repeats it.
                with anyio.CancelScope(shield=True), contextlib.suppress(OSError):
                    await self.files.run(self._remove_left, timeout_s=_REMOVAL_S)
            elif log is not None:
                log.info("request.kept", directory=path)

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise each OSError of the block as a TranslatorError that blames the temporary directory."""
        try:
            yield
        except OSError as exc:
            raise TranslatorError(
                f"The server has trouble with its temporary directory: {exc.strerror}", where=str(self.path)
            ) from exc

    def make_request_directory(self, *, keep: bool = False) -> Path:
        """Make an empty directory for one request, mode 0700; may raise OSError."""
        if keep:
            # On disk at once: a tree that a compile has shaped is never copied there.
            return Path(tempfile.mkdtemp(prefix=f"{self.path.name}.", dir=self._kept_parent))
        try:
            return Path(tempfile.mkdtemp(prefix=_REQUEST, dir=self.path))
        except FileNotFoundError:
            self._remake()
            return Path(tempfile.mkdtemp(prefix=_REQUEST, dir=self.path))

    def remove(self, path: Path) -> None:
        """Remove a request's directory, and those that could not be removed before."""
        self._unremoved.append(path)
        self._remove_left()

    def _remove_left(self) -> None:
        with contextlib.suppress(IndexError):  # other threads have taken them
            for _ in range(len(self._unremoved)):
                path = self._unremoved.popleft()
                # Without a free descriptor nothing can be removed, for example.
                if not trees.remove(path):
                    self._unremoved.append(path)

    def close(self) -> None:
        """Remove the directory and all that is left in it; what cannot be removed is swept later."""
        with self._remaking:
            self._closed = True
            _remove_with_lock(self.path)
            self._unlock()

    def _remake(self) -> None:
        with self._remaking:
            # Another thread may have made it already.
            if self._closed or self.path.is_dir():
                return
            path, *lock_fds = _make(self.path.parent)
            self._unlock()
            self.path, self._lock_fds = path, tuple(lock_fds)

    def _unlock(self) -> None:
        for fd in self._lock_fds:
            os.close(fd)


def _make(parent: Path) -> tuple[Path, int, int]:
    # Locked before it has the name that sweep() looks for: nobody finds it unlocked.
    unnamed = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(trees.remove, unnamed)
        lock_fd = os.open(unnamed / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        on_failure.callback(os.close, lock_fd)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # systemd-tmpfiles, which removes old files, spares a directory that is locked itself.
        directory_fd = os.open(unnamed, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        on_failure.callback(os.close, directory_fd)
        fcntl.flock(directory_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        path = unnamed.with_name(unnamed.name[1:])
        unnamed.rename(path)
        on_failure.pop_all()
    return path, lock_fd, directory_fd


def sweep(parent: Path) -> None:
    """Remove the directories in ``parent`` whose processes are dead.

    Only this user's go, and only with a lock file that nobody locks: those that ``-k`` kept, and those of
    SystemTap's own server, stay.
    """
    for path in _own_directories(parent):
        try:
            lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            if path.name.startswith("."):
                with contextlib.suppress(OSError):
                    path.rmdir()
            continue
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_with_lock(path)
        except OSError:
            continue  # it is locked
        finally:
            os.close(lock_fd)


def _own_directories(parent: Path) -> list[Path]:
    """Return the directories of this user's processes in ``parent``, but for one that is being made."""
    found = []
    # What cannot be listed cannot be swept, and need not be: this process can be given another directory.
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if not entry.name.removeprefix(".").startswith(_PREFIX):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                being_made = entry.name.startswith(".") and time.time() - status.st_ctime < _MAKING_S
                if status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode) and not being_made:
                    found.append(parent / entry.name)
    return found


def _remove_with_lock(path: Path) -> None:
    # The lock last: what stays is known by it. A process that is killed may still make the file that it was
    # about to make, where another attempt finds it.
    with contextlib.suppress(OSError):
        for _ in range(_ATTEMPTS):
            removed = [trees.remove(below) for below in path.iterdir() if below.name != _LOCK]
            if all(removed):
                trees.remove(path)
                return
