"""Checks by modes that others can neither read nor replace a server's key."""

from __future__ import annotations

import stat
from pathlib import Path

from stapsrv.errors import IdentityError


def refuse_exposed(directory: Path) -> None:
    """Raise an error if others can read or replace the key of an NSS database, which need not exist.

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
    absolute = directory.absolute()
    for path in (absolute, *absolute.parents):
        if everybody_may_write(path):
            raise IdentityError(
                "everybody may write to it, and so replace the certificate database in it",
                where=str(path),
                remedy=f"chmod o-w {path}",
            )


def everybody_may_write(path: Path) -> bool:
    """Whether everybody may write to a file, or replace what is in a directory."""
    mode = _mode(path)
    # In a sticky directory such as /tmp nobody can rename what is another's.
    return mode & stat.S_IWOTH != 0 and mode & stat.S_ISVTX == 0


def _mode(path: Path, *, follow_symlinks: bool = True) -> int:
    try:
        return path.stat(follow_symlinks=follow_symlinks).st_mode
    except FileNotFoundError:
        return 0
