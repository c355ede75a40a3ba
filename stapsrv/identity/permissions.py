"""Checks by modes that others can neither read nor replace a server's key."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from stapsrv.errors import IdentityError

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_MAY_SEARCH = stat.S_IXGRP | stat.S_IXOTH


def refuse_exposed(directory: Path, *, once_tightened: bool = False) -> None:
    """Raise an error if others can read or replace the key of an NSS database, which need not exist.

    With ``once_tightened``, what :func:`tighten_own` would mend is no error.

    Raises:
        IdentityError: names the file or directory, and the mode that it should have.
        OSError: its mode cannot be read.
    """
    key = directory / "key4.db"
    if _mode(key, follow_symlinks=False) & (stat.S_IRWXG | stat.S_IRWXO):
        raise IdentityError(
            "holds a private key, and others than its owner have access to it",
            where=str(key),
            remedy=f"chmod 600 {key}, and make a new certificate if anybody may have read it",
        )
    for path in _exposed(directory):
        if once_tightened and path.stat().st_uid == os.geteuid():
            continue
        raise IdentityError(
            "others may write to it, and so replace the certificate database in it",
            where=str(path),
            remedy=f"chmod go-w {path}",
        )


def tighten_own(directory: Path) -> list[Path]:
    """Take from others the right to write to this user's own directories on the way to a database.

    Returns those that were changed: SystemTap itself makes ``~/.systemtap`` and all below with mode 0777.
    """
    changed = []
    for path in list(_exposed(directory)):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if status.st_uid == os.geteuid():
                os.fchmod(fd, stat.S_IMODE(status.st_mode) & ~_OTHERS_MAY_WRITE)
                changed.append(path)
        finally:
            os.close(fd)
    return changed


def everybody_may_write(path: Path) -> bool:
    """Whether everybody may write to a file, or replace what is in a directory."""
    mode = _mode(path)
    # In a sticky directory such as /tmp nobody can rename what is another's.
    return mode & stat.S_IWOTH != 0 and mode & stat.S_ISVTX == 0


def _exposed(directory: Path) -> Iterator[Path]:
    """Yield the directories, from the top, in which others can replace a database or what leads to it."""
    for way in dict.fromkeys((directory.absolute(), directory.resolve())):
        for path in (*reversed(way.parents), way):
            try:
                status = path.stat()
            except FileNotFoundError:
                break
            # Where root lets a group write above the database, root means it: Kubernetes does with a volume.
            is_roots = status.st_uid == 0 and path != way
            dangerous = stat.S_IWOTH if is_roots else _OTHERS_MAY_WRITE
            if status.st_mode & dangerous and not status.st_mode & stat.S_ISVTX:
                yield path
            if not status.st_mode & _OTHERS_MAY_SEARCH and status.st_uid in {0, os.geteuid()}:
                # Others cannot come to anything below.
                break


def _mode(path: Path, *, follow_symlinks: bool = True) -> int:
    try:
        return path.stat(follow_symlinks=follow_symlinks).st_mode
    except FileNotFoundError:
        return 0
