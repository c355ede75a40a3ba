"""Checks by modes that others can neither read nor replace a server's key."""

from __future__ import annotations

import stat
from pathlib import Path

from stapsrv.errors import IdentityError

KEY_DATABASE = "key4.db"


def refuse_exposed(directory: Path) -> None:
    """Raise an error if others can read or replace the key of an NSS database, which need not exist.

    Raises:
        IdentityError: names the file or directory, and the mode that it should have.
        OSError: its mode cannot be read.
    """
    _refuse_readable_key(directory / KEY_DATABASE)
    absolute = directory.absolute()
    for path in (absolute, *absolute.parents):
        _refuse_writable(path)


def _refuse_readable_key(key: Path) -> None:
    try:
        mode = key.lstat().st_mode
    except FileNotFoundError:
        return
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise IdentityError(
            "holds a private key, and others than its owner have access to it",
            where=str(key),
            remedy=f"chmod 600 {key}, and make a new certificate if anybody may have read it",
        )


def _refuse_writable(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    # In a sticky directory such as /tmp nobody can rename what is another's.
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise IdentityError(
            "everybody may write to it, and so replace the certificate database in it",
            where=str(path),
            remedy=f"chmod o-w {path}",
        )
