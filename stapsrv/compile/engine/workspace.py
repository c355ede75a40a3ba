"""Temporary directories: one for each request, all under one of this process's own.

``$TMPDIR/stap-server.XXXXXX``, or one like it in memory, belongs to a process as long as that holds a lock on
the file ``lock`` in it. A process that was killed leaves its directory behind, unlocked; the next one sweeps
it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path

from stapsrv.compile.engine.tmpfs import Tmpfs
from stapsrv.errors import ConfigError
from stapsrv.system.blocking import BlockingCalls

_PREFIX = "stap-server."
_REQUEST = "request."
_LOCK = "lock"
_MAKING_S = 60.0
"""What is older and has no name yet was being made by a process that was killed over it."""


class Workspace:
    """This process's directory; made by :meth:`open`, to be closed.

    It is made anew when somebody removed it.

    Attributes:
        path: its absolute name; mode 0700.
        files: what works on files in it, since it may be on a file system that hangs.
        keeps: where directories are kept (``-k``).
    """

    def __init__(self, path: Path, *lock_fds: int, keeps: Path | None = None) -> None:
        self.path = path
        self.files = BlockingCalls()
        self.keeps = keeps or path.parent
        self._lock_fds = lock_fds
        self._renewing = threading.Lock()
        self._closed = False
        self._leaving = threading.Lock()
        self._left: list[Path] = []

    @classmethod
    def open(cls, parent: Path | None = None, *, memory: Path | None = None) -> Workspace:
        """Make a directory in ``parent`` (default: ``$TMPDIR``, else /tmp) and sweep out dead ones.

        Args:
            parent: where directories are kept, in any case.
            memory: where it is made instead.

        Raises:
            ConfigError: no directory can be made there.
        """
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        for place in (parent, Tmpfs().directory):
            sweep(place)
        try:
            return cls(*_make(memory or parent), keeps=parent)
        except OSError as exc:
            raise ConfigError(
                f"no temporary directory can be made: {exc.strerror}",
                where=str(memory or parent),
                remedy="point TMPDIR to a directory that the server's user may write to",
            ) from exc

    @property
    def is_in_memory(self) -> bool:
        """Whether it is elsewhere than what is kept."""
        return self.path.parent != self.keeps

    def make_request_directory(self) -> Path:
        """Make an empty directory for one request, mode 0700; it goes back by :meth:`discard`.

        Raises:
            OSError: it cannot be made.
        """
        try:
            return Path(tempfile.mkdtemp(prefix=_REQUEST, dir=self.path))
        except FileNotFoundError:
            self._renew()
            return Path(tempfile.mkdtemp(prefix=_REQUEST, dir=self.path))

    def discard(self, path: Path, *, keep: bool) -> Path | None:
        """Remove a request's directory, or keep it under a name of its own (``-k``), and on disk.

        Returns:
            Where it was kept, or None.
        """
        if not keep:
            self._remove(path)
            return None
        kept = self.keeps / f"{path.parent.name}.{path.name.removeprefix(_REQUEST)}"
        try:
            shutil.move(path, kept)
        except FileNotFoundError:
            return None
        return kept

    def _remove(self, path: Path) -> None:
        """Remove a tree, and what could not be removed before: without a free descriptor nothing can."""
        with self._leaving:
            left, self._left = [*self._left, path], []
        for tree in left:
            if not _remove_tree(tree):
                with self._leaving:
                    self._left.append(tree)

    def close(self) -> None:
        """Remove the directory and all that is left in it."""
        with self._renewing:
            self._closed = True
            _remove_tree(self.path)
            self._unlock()

    def _renew(self) -> None:
        """Make the directory anew if it is gone; another thread may have done so already."""
        with self._renewing:
            if self._closed or self.path.is_dir():
                return
            path, *lock_fds = _make(self.path.parent)
            self._unlock()
            self.path, self._lock_fds = path, tuple(lock_fds)

    def _unlock(self) -> None:
        for fd in self._lock_fds:
            os.close(fd)


def _make(parent: Path) -> tuple[Path, int, int]:
    """Make a workspace in ``parent``; return its path and the descriptors that lock it."""
    # Locked before it has the name that sweepers look for: nobody sees it unowned.
    unnamed = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_tree, unnamed)
        lock_fd = os.open(unnamed / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, lock_fd)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # systemd-tmpfiles, which clears old files away, spares a directory that is locked itself.
        directory_fd = os.open(unnamed, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, directory_fd)
        fcntl.flock(directory_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        path = unnamed.with_name(unnamed.name[1:])
        unnamed.rename(path)
        undo.pop_all()
    return path, lock_fd, directory_fd


def sweep(parent: Path) -> list[Path]:
    """Remove the workspaces in ``parent`` whose processes are dead; returns what was removed.

    Only directories of this user are touched, and only such as hold a lock file that nobody locks:
    those that ``-k`` kept, and the original server's, stay.
    """
    swept = []
    for path in (*parent.glob(f"{_PREFIX}*"), *parent.glob(f".{_PREFIX}*")):
        try:
            status = path.lstat()
            being_made = path.name.startswith(".") and time.time() - status.st_ctime < _MAKING_S
            if status.st_uid != os.geteuid() or being_made or not stat.S_ISDIR(status.st_mode):
                continue
            lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            if path.name.startswith("."):
                with contextlib.suppress(OSError):
                    path.rmdir()
            continue
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            _remove_tree(path)
            swept.append(path)
        finally:
            os.close(lock_fd)
    return swept


def _remove_tree(path: Path) -> bool:
    """Remove a tree; directories that a compile sealed are opened first. Returns whether nothing is left."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return True
    with contextlib.suppress(OSError):
        path.chmod(0o700)
        for parent, names, _ in os.walk(path):
            for directory in (Path(parent, name) for name in names):
                if not directory.is_symlink():
                    directory.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()
