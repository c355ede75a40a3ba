"""Directory trees that others shape: walked, read and removed, whatever is in them.

Every step is from an open directory to a name in it, and follows no link; nothing waits for a FIFO. Depth
costs neither recursion nor descriptors, and a path may be longer than the kernel takes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Entry(NamedTuple):
    """A name in a tree."""

    directory: int  # where it is; open until the next entry is asked for
    above: str  # the way there from the top: empty, or it ends with a slash
    name: str
    status: os.stat_result  # of a link itself

    @property
    def path(self) -> str:
        """The way to it from the top."""
        return self.above + self.name


def is_directory(path: Path) -> bool:
    """Whether a path leads to a directory; raises OSError where this user may not look.

    ``Path.is_dir`` says False then, from Python 3.14 on.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            return False
        raise


@contextlib.contextmanager
def open_directory(path: Path, below: Path = Path()) -> Iterator[int]:
    """Hold a directory's descriptor; neither it nor a part of ``below`` may be a link, else an OSError."""
    directory = os.open(path, _DIRECTORY)
    try:
        for name in below.parts:
            directory = _move(directory, name)
        yield directory
    finally:
        os.close(directory)


def walk(top: int, *, max_depth: int) -> Generator[Entry, None, None]:
    """Yield all entries below an open directory, a directory before what is in it; to be closed.

    Raises:
        OSError: a directory cannot be read (EACCES), lies deeper than ``max_depth`` (ELOOP), or was moved
            during the walk (ESTALE). One that was removed during the walk is none.
    """
    here = os.open(".", _DIRECTORY, dir_fd=top)
    try:
        # From the top to here: each directory, the way to it, and those in it that are still to come.
        way = [(os.fstat(here), "", below := list[str]())]
        yield from _list(here, "", below)
        while way:
            _, above, below = way[-1]
            if not below:
                way.pop()
                if way:
                    here = _move(here, "..")
                    if not os.path.samestat(os.fstat(here), way[-1][0]):
                        raise OSError(errno.ESTALE, "a directory was moved while it was read")
                continue
            name = below.pop()
            try:
                here = _move(here, name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if len(way) > max_depth:
                raise OSError(errno.ELOOP, f"directories are nested more than {max_depth} deep")
            way.append((os.fstat(here), above := f"{above}{name}/", below := []))
            yield from _list(here, above, below)
    finally:
        os.close(here)


def read_file(directory: int, name: str, *, max_bytes: int) -> bytes:
    """Return what is in a regular file.

    Raises:
        OSError: it is larger (EFBIG), no regular file (EINVAL), or cannot be read.
    """
    with os.fdopen(os.open(name, _FILE, dir_fd=directory), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", name)
        if status.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {max_bytes} bytes", name)
        return stream.read(status.st_size)


def remove(path: Path) -> bool:
    """Remove a file or a tree, also one whose modes forbid it; return whether it is gone.

    What cannot be removed stays, and all else goes.
    """
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _remove(parent, path.name)
        finally:
            os.close(parent)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _remove(parent: int, name: str) -> None:
    if _unlink(parent, name):
        return
    with _open_to_change(parent, name) as top:
        stuck: set[str] = set()
        while names := _names(top) - stuck:
            for below in names:
                try:
                    _remove_level(top, below)
                except OSError:
                    stuck.add(below)
    os.rmdir(name, dir_fd=parent)


def _remove_level(top: int, name: str) -> None:
    """Remove a file or directory; the directories in that are moved to ``top``, so that none is ever deep."""
    if _unlink(top, name):
        return
    with _open_to_change(top, name) as directory:
        for below in _names(directory):
            if not _unlink(directory, below):
                # A directory that is moved must be writable itself.
                with _open_to_change(directory, below):
                    os.rename(below, secrets.token_hex(16), src_dir_fd=directory, dst_dir_fd=top)
    os.rmdir(name, dir_fd=top)


def _names(directory: int) -> set[str]:
    with os.scandir(directory) as entries:
        return {entry.name for entry in entries}


def _unlink(directory: int, name: str) -> bool:
    """Remove what is no directory; return whether it was none."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


@contextlib.contextmanager
def _open_to_change(parent: int, name: str) -> Iterator[int]:
    # Without a right to it there is still a descriptor that names it, through which it can be given one.
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, handle)
        if os.fstat(handle).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # noqa: PTH101 - a descriptor
        directory = os.open(".", _DIRECTORY, dir_fd=handle)
        opened.callback(os.close, directory)
        yield directory


def _list(directory: int, above: str, below: list[str]) -> Iterator[Entry]:
    """Yield the entries of a directory, and add the names of the directories among them to ``below``."""
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                below.append(entry.name)
            yield Entry(directory, above, entry.name, status)


def _move(directory: int, name: str) -> int:
    """Open a directory in another one, which is closed once it is open."""
    entered = os.open(name, _DIRECTORY, dir_fd=directory)
    os.close(directory)
    return entered
