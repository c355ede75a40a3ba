"""Directories whose contents change all at once, with one process at a time changing them.

A change is prepared in a private directory *inside* the one it is for, and takes effect by one rename
(:func:`commit`). What follows that rename is only moving finished files to their places; a process that
dies half-way leaves work that :func:`finish_commit` completes. Replacing the files rather than the
directory keeps all else in it (an operator's ``moks/``), its owner and its mode, and works where a
directory cannot be renamed: a mount point, an image layer, a parent that belongs to somebody else.

Three names in such a directory belong to this module: ``.lock``, ``.ready`` and ``.new-…``.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio

from stapsrv.errors import IdentityError
from stapsrv.system.atomic_file import sync

LOCK_TIMEOUT_S = 60.0
"""The holder makes an RSA key and runs a few short programs; a slow host takes some ten seconds for that."""

_LOCK = ".lock"
_LOCK_POLL_S = 0.05
_STAGING = ".new-"
_READY = ".ready"
_SQLITE_SIDECARS = ("-journal", "-wal", "-shm")


@asynccontextmanager
async def write_lock(directory: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> AsyncIterator[None]:
    """Have ``directory``, made if missing, alone: no other process or task reads or changes it.

    What a process that died left behind is finished or swept away first.

    Raises:
        IdentityError: others had it for longer than ``timeout_s``.
        OSError: the directory cannot be made or written.
    """
    ensure_directory(directory)
    descriptor = _open_lock(directory)
    try:
        await _wait_locked(descriptor, fcntl.LOCK_EX, directory, timeout_s)
        finish_commit(directory)
        _sweep(directory)
        yield
    finally:
        os.close(descriptor)


@asynccontextmanager
async def read_lock(directory: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> AsyncIterator[None]:
    """Keep others from changing ``directory``, not from reading it.

    Where it is missing, or not ours to write, there is no lock to be had: it is read as it is.

    Raises:
        IdentityError: another process was changing it for longer than ``timeout_s``.
    """
    try:
        descriptor = _open_lock(directory)
    except OSError:
        yield
        return
    try:
        await _wait_locked(descriptor, fcntl.LOCK_SH, directory, timeout_s)
        yield
    finally:
        os.close(descriptor)


def ensure_directory(directory: Path) -> None:
    """Make ``directory`` with mode 0755, as the original does, unless it exists; parents follow the umask."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o755)
    except FileExistsError:
        if not directory.is_dir():
            raise
    else:
        directory.chmod(0o755)


def remove_leftovers(directory: Path) -> None:
    """Remove what processes that died were preparing in a directory, unless somebody is at it now.

    It may hold private keys, and nobody may change the directory for a long time. What is not ours stays.
    """
    with suppress(OSError):
        if not any(directory.glob(f"{_STAGING}*")):
            return
        descriptor = _open_lock(directory)
        try:
            if _lock_nowait(descriptor, fcntl.LOCK_EX):
                _sweep(directory)
        finally:
            os.close(descriptor)


@contextmanager
def staging_directory(directory: Path) -> Iterator[Path]:
    """Give a new private directory in which to prepare a change of ``directory``; gone on exit."""
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=directory))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def commit(staging: Path, directory: Path) -> None:
    """Let the files in ``staging`` take the places of those with the same names in ``directory``.

    All or nothing: an OSError from the first step leaves everything as it was, and after that step the
    change is sure to happen. Blocks until the files are on the disk.
    """
    for path in (*staging.iterdir(), staging):
        sync(path)
    staging.rename(directory / _READY)
    finish_commit(directory)


def finish_commit(directory: Path) -> None:
    """Complete a commit that was interrupted; nothing to do otherwise."""
    ready = directory / _READY
    if not path_exists(ready):
        return
    for source in sorted(ready.iterdir()):
        # SQLite would roll a dead database's journal back into the new one.
        for suffix in _SQLITE_SIDECARS:
            (directory / f"{source.name}{suffix}").unlink(missing_ok=True)
        source.rename(directory / source.name)
    ready.rmdir()


def has_pending_commit(directory: Path) -> bool:
    """Whether a commit was interrupted, or is under way: what is there now is about to be replaced."""
    return path_exists(directory / _READY)


def path_exists(path: Path) -> bool:
    """Whether something is there; unlike ``Path.exists``, permission denied is an error, not an answer."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def explain_os_errors(directory: Path) -> Iterator[None]:
    """Turn what the operating system refused in ``directory`` into an IdentityError that says what to do."""
    try:
        yield
    except PermissionError as exc:
        raise IdentityError(
            f"permission denied on {exc.filename}" if exc.filename else "permission denied",
            where=str(directory),
            remedy=f"let user {_user_name()} read and write it, or use another directory",
        ) from exc
    except OSError as exc:
        raise IdentityError(
            exc.strerror or str(exc),
            where=str(directory),
            remedy="mend that, or use another directory",
        ) from exc


def _open_lock(directory: Path) -> int:
    return os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


async def _wait_locked(descriptor: int, kind: int, directory: Path, timeout_s: float) -> None:
    with anyio.move_on_after(timeout_s):
        while not _lock_nowait(descriptor, kind):  # noqa: ASYNC110 - another process holds it and sends no event
            await anyio.sleep(_LOCK_POLL_S)
        return
    raise IdentityError(
        f"another process has been changing it for more than {timeout_s:g} s",
        where=str(directory),
        remedy=f"see which one holds {directory / _LOCK} (fuser) and try again",
    )


def _lock_nowait(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(directory: Path) -> None:
    """Remove what was being prepared by a process that died; the lock tells that it is nobody's."""
    for left_over in directory.glob(f"{_STAGING}*"):
        shutil.rmtree(left_over, ignore_errors=True)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
