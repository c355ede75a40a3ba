"""The password of certificate databases, from a descriptor, a file, a credential or the terminal.

Never from a command line, which every user of the host can read.
"""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from stapsrv.errors import ConfigError

# Its name among a service manager's credentials ($CREDENTIALS_DIRECTORY).
CREDENTIAL = "stap-server-password"
_MAX_BYTES = 1024


def obtain_password(environ: Mapping[str, str], *, file: Path | None, descriptor: int | None) -> str:
    """Return the password (``-P``): the first line, without its end, of what is given.

    In this order: ``descriptor``, which is closed; ``file``; the credential
    ``$CREDENTIALS_DIRECTORY/stap-server-password``; the terminal, where the user is asked.

    Raises:
        ConfigError: the file cannot be read, others can read it, or it is not UTF-8; or there is no terminal.
    """
    if descriptor is not None:
        with os.fdopen(descriptor, "rb") as stream:
            return _first_line(stream.read(_MAX_BYTES), where="the password's descriptor")
    if file is not None:
        return _from_file(file)
    if "CREDENTIALS_DIRECTORY" in environ:
        credential = Path(environ["CREDENTIALS_DIRECTORY"]) / CREDENTIAL
        if credential.exists():
            return _from_file(credential)
    try:
        with open("/dev/tty", "rb"):  # noqa: PTH123 - only to check that there is one
            pass
    except OSError as exc:
        raise ConfigError(
            "no terminal to ask for the password of the certificate database",
            where="-P",
            remedy=f"name a file with --password-file, or give the credential {CREDENTIAL}",
        ) from exc
    return getpass.getpass("Password of the certificate database: ")


def _from_file(file: Path) -> str:
    where = f"password file {file}"
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    "others than its owner have access to it", where=where, remedy=f"chmod 600 {file}"
                )
            return _first_line(stream.read(_MAX_BYTES), where=where)
    except OSError as exc:
        raise ConfigError(f"cannot be read ({exc.strerror})", where=where) from exc


def _first_line(data: bytes, *, where: str) -> str:
    line = data.split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        password = line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError("is not UTF-8 text", where=where) from exc
    if not password or len(line) >= _MAX_BYTES:
        raise ConfigError("holds no password in its first line", where=where)
    return password
