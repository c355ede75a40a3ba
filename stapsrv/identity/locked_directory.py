"""Directories whose files change all at once, by one process at a time.

A change is staged in a private directory inside the one it is for, and takes effect by one rename
(:func:`commit`). What follows only moves finished files to their places; :func:`finish_commit` completes it
after a crash. Three names belong to this module: ``.lock``, ``.ready`` and ``.new-…``.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from io import FileIO
from pathlib import Path

import anyio
import anyio.to_thread

from stapsrv.errors import IdentityError
from stapsrv.system import trees
from stapsrv.system.atomic_file import sync

# The holder makes an RSA key and runs a few short programs: some ten seconds on a slow host.
_LOCK_TIMEOUT_S = 60.0

# The files are replaced, not the directory: that keeps everything else in it (an operator's ``moks/``), its
# owner and its mode, and works where it cannot be renamed, such as at a mount point.
_LOCK = ".lock"
_LOCK_POLL_S = 0.05
_STAGING = ".new-"
_READY = ".ready"
_SQLITE_SIDECARS = ("-journal", "-wal", "-shm")


@asynccontextmanager
async def write_lock(directory: Path, *, timeout_s: float = _LOCK_TIMEOUT_S) -> AsyncIterator[None]:
    """Lock ``directory``, made if missing, for writing, and finish or remove what a crash left in it.

    Raises:
        IdentityError: others held it for longer than ``timeout_s``.
        OSError: the directory cannot be made or written.
    """
    ensure_directory(directory)
    with _open_lock(directory) as lock:
        await _wait_locked(lock, fcntl.LOCK_EX, directory, timeout_s)
        finish_commit(directory)
        _sweep(directory)
        yield


@asynccontextmanager
async def read_lock(directory: Path, *, timeout_s: float = _LOCK_TIMEOUT_S) -> AsyncIterator[bool]:
    """Lock ``directory`` for reading; yields whether it is whole: no commit was interrupted.

    There is no lock where it is missing, or not writable for this user: it is read as it is.

    Raises:
        IdentityError: another process was changing it for longer than ``timeout_s``.
    """
    try:
        lock = _open_lock(directory)
    except OSError:
        yield not path_exists(directory / _READY)
        return
    with lock:
        await _wait_locked(lock, fcntl.LOCK_SH, directory, timeout_s)
        yield not path_exists(directory / _READY)


def ensure_directory(directory: Path) -> None:
    """Make ``directory``, unless it exists, with mode 0755; parents follow the umask."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o755)
    except FileExistsError:
        if not directory.is_dir():
            raise
    else:
        directory.chmod(0o755)


def remove_leftovers(directory: Path) -> None:
    """Remove what crashed processes staged in a directory, unless it is locked now."""
    # It may hold private keys, and the next write_lock() may be a long time away.
    with suppress(OSError):
        if _staged(directory):
            with _open_lock(directory) as lock:
                if _lock_nowait(lock, fcntl.LOCK_EX):
                    _sweep(directory)


@contextmanager
def staging_directory(directory: Path) -> Iterator[Path]:
    """Hold a new private directory in which to stage a change of ``directory``; it is removed at the end."""
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=directory))
    try:
        yield staging
    finally:
        trees.remove(staging)


@asynccontextmanager
async def replacing(directory: Path) -> AsyncIterator[Path]:
    """Hold a staging directory, whose files replace those in ``directory`` unless the block fails."""
    with staging_directory(directory) as staging:
        yield staging
        await anyio.to_thread.run_sync(commit, staging, directory)


def commit(staging: Path, directory: Path) -> None:
    """Replace files in ``directory`` with those in ``staging``, all or none; waits for the disk.

    Raises:
        OSError: nothing was changed, or, after the first rename, :func:`finish_commit` will complete it.
    """
    for path in (*staging.iterdir(), staging):
        sync(path)
    staging.rename(directory / _READY)
    finish_commit(directory)


def finish_commit(directory: Path) -> None:
    """Complete a commit that was interrupted, if there is one."""
    ready = directory / _READY
    if not path_exists(ready):
        return
    for source in sorted(ready.iterdir()):
        # SQLite would roll a dead database's journal back into the new one.
        for suffix in _SQLITE_SIDECARS:
            (directory / f"{source.name}{suffix}").unlink(missing_ok=True)
        source.rename(directory / source.name)
    ready.rmdir()


def path_exists(path: Path) -> bool:
    """Whether something is there; unlike for ``Path.exists``, permission denied is an error."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def explain_os_errors(directory: Path) -> Iterator[None]:
    """Raise an OSError of the block as an IdentityError with a remedy."""
    try:
        yield
    except OSError as exc:
        problem, remedy = exc.strerror or str(exc), "mend that, or use another directory"
        if isinstance(exc, PermissionError):
            problem = f"permission denied on {exc.filename}" if exc.filename else "permission denied"
            remedy = f"let user {_user_name()} read and write it, or use another directory"
        raise IdentityError(problem, where=str(directory), remedy=remedy) from exc


def _open_lock(directory: Path) -> FileIO:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    return os.fdopen(descriptor, "rb", buffering=0)


async def _wait_locked(lock: FileIO, kind: int, directory: Path, timeout_s: float) -> None:
    with anyio.move_on_after(timeout_s):
        while not _lock_nowait(lock, kind):  # noqa: ASYNC110 - another process holds it and sends no event
            await anyio.sleep(_LOCK_POLL_S)
        return
    raise IdentityError(
        f"another process has been changing it for more than {timeout_s:g} s",
        where=str(directory),
        remedy=f"see which one holds {directory / _LOCK} (fuser) and try again",
    )


def _lock_nowait(lock: FileIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(directory: Path) -> None:
    # The caller has the lock, so no process that runs is staging these.
    for left_over in _staged(directory):
        trees.remove(left_over)


def _staged(directory: Path) -> list[Path]:
    # Not by a glob, which finds nothing where it may not look.
    return [path for path in directory.iterdir() if path.name.startswith(_STAGING)]


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
