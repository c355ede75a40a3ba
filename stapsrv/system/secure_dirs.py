"""Directories and files that have to be there before a supervisor starts, made by root for its users.

Root must not be led elsewhere by those whose directories it works in. So a path is walked one name at a
time from an open directory to the next, a link is followed only out of a directory that root alone can
write, and what belongs to somebody is handed over by its descriptor, never by its name.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stapsrv.errors import ConfigError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
"""As the kernel has it."""
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Ownership(NamedTuple):
    """Whose something that is made will be.

    Attributes:
        uid: the user id, or -1 for the caller's.
        gid: the group id, or -1 for the caller's.
        mode: the permissions.
    """

    uid: int
    gid: int
    mode: int


_PARENT = Ownership(-1, -1, 0o755)


def make_directory(path: Path, ownership: Ownership) -> None:
    """Make a directory, and its parents, where they are missing; what is there stays as it is.

    Raises:
        ConfigError: it cannot be made, or the way to it could be changed by others.
    """
    with _explained(path):
        os.close(_walk(path, ownership))


def make_file(path: Path, ownership: Ownership) -> None:
    """Make an empty file where there is none; its directory must be there.

    Raises:
        ConfigError: it cannot be made, or the way to it could be changed by others.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _open_parent(path) as parent, _explained(path), contextlib.suppress(FileExistsError):
        fd = os.open(path.name, flags, 0o600, dir_fd=parent)
        _hand_over(fd, ownership)
        os.close(fd)


def open_lock(directory: Path, name: str, uid: int) -> int:
    """Open a lock file of user ``uid``, making it where there is none; returns its descriptor.

    Raises:
        ConfigError: it cannot be made or opened.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    path = directory / name
    with _open_parent(path) as parent, _explained(path):
        try:
            fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
        except FileExistsError:
            return os.open(name, flags, dir_fd=parent)
        _hand_over(fd, Ownership(uid, -1, 0o600))
        return fd


def share_with_group(path: Path, group: str) -> None:
    """Give ``path`` to a group where this user is a member of it; its mode says what that means."""
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(group).gr_gid)


@contextlib.contextmanager
def _open_parent(path: Path) -> Iterator[int]:
    """Hold the directory of ``path`` open; parents that are missing are made, for all to read."""
    fd = -1
    try:
        with _explained(path.parent):
            fd = _walk(path.parent, _PARENT)
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def _walk(path: Path, ownership: Ownership) -> int:
    """Open a directory, making what is missing, its last part with ``ownership``; returns its descriptor."""
    fd = os.open("/", _DIRECTORY)
    names = list(reversed(path.parts[1:]))
    links = 0
    try:
        while names:
            name = names.pop()
            target = _link_target(fd, name, path)
            if target is None:
                fd, parent = _enter(fd, name, _PARENT if names else ownership), fd
                os.close(parent)
                continue
            links += 1
            _check_links(links, path)
            names += reversed([part for part in target.parts if part != target.root])
            if target.is_absolute():
                os.close(fd)
                fd = os.open("/", _DIRECTORY)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_links(followed: int, path: Path) -> None:
    if followed > _MOST_LINKS:
        raise ConfigError("leads through too many links", where=str(path))


def _link_target(parent: int, name: str, path: Path) -> Path | None:
    """Return where a link leads, or None for something else, or nothing.

    Raises:
        ConfigError: others can turn it to anywhere, since they can write the directory that it is in.
    """
    try:
        if not stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return None
    except FileNotFoundError:
        return None
    status = os.fstat(parent)
    # A plain user makes nothing for others, and can be led to nothing that is not his.
    if os.geteuid() == 0 and (status.st_uid != 0 or status.st_mode & _OTHERS_MAY_WRITE):
        raise ConfigError(
            f"leads through the link '{name}', which others than root may change",
            where=str(path),
            remedy="give the path that it leads to",
        )
    return Path(os.readlink(name, dir_fd=parent))


def _enter(parent: int, name: str, ownership: Ownership) -> int:
    """Open a directory within another, making it where it is missing; returns its descriptor."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    if os.fstat(fd).st_uid != os.geteuid():
        os.close(fd)
        raise ConfigError("was replaced by somebody while it was being made", where=name)
    _hand_over(fd, ownership)
    return fd


def _hand_over(fd: int, ownership: Ownership) -> None:
    os.fchown(fd, ownership.uid, ownership.gid)
    os.fchmod(fd, ownership.mode)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigError(
            f"cannot be made or opened: {exc.strerror}",
            where=str(path),
            remedy="make it, or give another path in the global configuration file",
        ) from exc
