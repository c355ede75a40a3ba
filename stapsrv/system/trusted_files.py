"""Files in directories that others can write: opened without waiting or following links, and known by owner.

There a name says nothing of who made what it leads to: a pipe would hold up who opens it, and a link lead to
another file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_NO_DETOUR = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# On the way to one file; the kernel's limit.
_MAX_LINKS = 40


def read_file(path: Path | str, *, max_bytes: int) -> tuple[int, bytes]:
    """Return the owner's user id and the first bytes of a regular file that has one name only.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    fd = os.open(path, os.O_RDONLY | _NO_DETOUR)
    with os.fdopen(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        # Where hard links are not protected (sysctl fs.protected_hardlinks), anybody names another's file.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise _refused(path)
        data = b""
        while len(data) < max_bytes and (more := file.read(max_bytes - len(data))):
            data += more
        return status.st_uid, data


def open_appending(path: Path, *, mode: int) -> int:
    """Open a file for appending, made with ``mode`` where it is missing; the caller closes the descriptor.

    A link is followed and a pipe opened only if root or this user made it.

    Raises:
        OSError: it cannot be opened, or it is another user's link or pipe.
    """
    for _ in range(_MAX_LINKS):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | _NO_DETOUR)
        except FileNotFoundError:
            # Apart, since opening another's file with O_CREAT may be forbidden (sysctl fs.protected_regular).
            try:
                return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _NO_DETOUR, mode)
            except FileExistsError:
                continue
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            path = path.parent / _target_of(path)
            continue
        status = os.fstat(fd)
        if not stat.S_ISFIFO(status.st_mode) or _is_ours(status):
            return fd
        os.close(fd)
        raise _refused(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def open_owned_directory(path: Path, uid: int) -> int:
    """Open a directory of user ``uid``, which the path names without a link; the caller closes it.

    Raises:
        PermissionError: it is somebody else's.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NO_DETOUR)
    if os.fstat(fd).st_uid != uid:
        os.close(fd)
        raise _refused(path)
    return fd


def _target_of(link: Path) -> str:
    # By descriptor: what was checked is what is read.
    fd = os.open(link, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _is_ours(os.fstat(fd)):
            raise _refused(link)
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()}


def _refused(path: Path | str) -> PermissionError:
    return PermissionError(errno.EACCES, "it is another user's, or no plain file", str(path))
