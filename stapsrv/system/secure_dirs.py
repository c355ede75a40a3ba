"""Directories and files that root makes for other users, without following where these users may lead it.

A path is walked one name at a time from an open directory to the next, a link is followed only in a directory
that root alone can write, and ownership is given by descriptor, never by name. A ConfigError says what cannot
be made or opened, or where others could change the way to it.
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
from stapsrv.system.trusted_files import open_owned_directory

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# The kernel's limit.
_MAX_LINKS = 40
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Ownership(NamedTuple):
    """Owner, group and permissions of what is made; -1 is the caller's own."""

    uid: int
    gid: int
    mode: int


_PARENT = Ownership(-1, -1, 0o755)


def make_directory(path: Path, ownership: Ownership) -> None:
    """Make a directory and its parents where they are missing; what exists is not changed."""
    with _as_config_error(path):
        os.close(_open_directory(path, ownership))


def make_file(path: Path, ownership: Ownership) -> None:
    """Make an empty file where there is none, and its directory for all to read."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as opened:
        with _as_config_error(path.parent):
            parent = _open_directory(path.parent, _PARENT)
        opened.callback(os.close, parent)
        with _as_config_error(path), contextlib.suppress(FileExistsError):
            fd = os.open(path.name, flags, 0o600, dir_fd=parent)
            opened.callback(os.close, fd)
            _give(fd, ownership)


def open_lock(directory: Path, name: str, uid: int) -> int | None:
    """Open a lock file in a directory of user ``uid``, made where it is missing; the caller closes it.

    Returns None if there is no such directory.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    with _as_config_error(directory / name):
        try:
            parent = open_owned_directory(directory, uid)
        except FileNotFoundError:
            return None
        try:
            fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
        except FileExistsError:
            return os.open(name, flags, dir_fd=parent)
        finally:
            os.close(parent)
        _give(fd, Ownership(uid, -1, 0o600))
        return fd


def share_with_group(path: Path | int, group: str) -> None:
    """Give a path or a descriptor to a group if this user is a member of it."""
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(group).gr_gid)


def _open_directory(path: Path, ownership: Ownership) -> int:
    """Open a directory, its last part made with ``ownership``; returns its descriptor."""
    fd = os.open("/", _DIRECTORY)
    names = list(reversed(path.parts[1:]))
    links = 0
    try:
        while names:
            name = names.pop()
            target = _link_target(fd, name, path, followed=links)
            if target is None:
                fd, parent = _enter(fd, name, _PARENT if names else ownership), fd
                os.close(parent)
                continue
            links += 1
            names += reversed([part for part in target.parts if part != target.root])
            if target.is_absolute():
                os.close(fd)
                fd = os.open("/", _DIRECTORY)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _link_target(parent: int, name: str, path: Path, *, followed: int) -> Path | None:
    """Return a link's target; None for anything else, also nothing."""
    try:
        if not stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return None
    except FileNotFoundError:
        return None
    if followed == _MAX_LINKS:
        raise ConfigError("leads through too many links", where=str(path))
    status = os.fstat(parent)
    # Not for a plain user, who can be led to nothing that he could not write himself.
    if os.geteuid() == 0 and (status.st_uid != 0 or status.st_mode & _OTHERS_MAY_WRITE):
        raise ConfigError(
            f"leads through the link '{name}', which others than root may change",
            where=str(path),
            remedy="give the path that it leads to",
        )
    return Path(os.readlink(name, dir_fd=parent))


def _enter(parent: int, name: str, ownership: Ownership) -> int:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    if os.fstat(fd).st_uid != os.geteuid():
        os.close(fd)
        raise ConfigError("was replaced by somebody while it was being made", where=name)
    _give(fd, ownership)
    return fd


def _give(fd: int, ownership: Ownership) -> None:
    os.fchown(fd, ownership.uid, ownership.gid)
    os.fchmod(fd, ownership.mode)


@contextlib.contextmanager
def _as_config_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigError(
            f"cannot be made or opened: {exc.strerror}",
            where=str(path),
            remedy="make it, or give another path in the global configuration file",
        ) from exc
