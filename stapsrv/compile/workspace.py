"""Temporary directories: one for each request, all under one of this process's own.

``$TMPDIR/stap-server.XXXXXX`` belongs to a process as long as that holds a lock on the file ``lock`` in
it. A process that was killed leaves its directory behind, unlocked; the next one sweeps it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from stapsrv.errors import ConfigError

_PREFIX = "stap-server."
_REQUEST = "request."
_LOCK = "lock"


class Workspace:
    """This process's directory; made by :meth:`open`, to be closed.

    Attributes:
        path: its absolute name; mode 0700.
    """

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, parent: Path | None = None) -> Workspace:
        """Make a directory in ``parent`` (default: ``$TMPDIR``, else /tmp) and sweep out dead ones.

        Raises:
            ConfigError: no directory can be made there.
        """
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        sweep(parent)
        try:
            # Locked before it has the name that sweepers look for: nobody sees it unowned.
            unnamed = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
            lock_fd = os.open(unnamed / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = unnamed.with_name(unnamed.name[1:])
            unnamed.rename(path)
        except OSError as exc:
            raise ConfigError(
                f"no temporary directory can be made: {exc.strerror}",
                where=str(parent),
                remedy="point TMPDIR to a directory that the server's user may write to",
            ) from exc
        return cls(path, lock_fd)

    def make_request_directory(self) -> Path:
        """Make an empty directory for one request, mode 0700; it goes back by :meth:`discard`.

        Raises:
            OSError: it cannot be made.
        """
        return Path(tempfile.mkdtemp(prefix=_REQUEST, dir=self.path))

    def discard(self, path: Path, *, keep: bool) -> Path | None:
        """Remove a request's directory, or keep it under a name of its own beside the workspace (``-k``).

        Returns:
            Where it was kept, or None.
        """
        if not keep:
            _remove_tree(path)
            return None
        kept = self.path.with_name(f"{self.path.name}.{path.name.removeprefix(_REQUEST)}")
        path.rename(kept)
        return kept

    def close(self) -> None:
        """Remove the directory and all that is left in it."""
        _remove_tree(self.path)
        os.close(self._lock_fd)


def sweep(parent: Path) -> list[Path]:
    """Remove the workspaces in ``parent`` whose processes are dead; returns what was removed.

    Only directories of this user are touched, and only such as hold a lock file that nobody locks:
    those that ``-k`` kept, and the original server's, stay.
    """
    swept = []
    for path in parent.glob(f"{_PREFIX}*"):
        try:
            if path.lstat().st_uid != os.geteuid():
                continue
            lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
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


def _remove_tree(path: Path) -> None:
    """Remove a tree as far as it can be removed; directories that a compile sealed are opened first."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    with contextlib.suppress(OSError):
        path.chmod(0o700)
        for parent, names, _ in os.walk(path):
            for directory in (Path(parent, name) for name in names):
                if not directory.is_symlink():
                    directory.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
