"""The password of certificate databases: from a file, a credential, a descriptor or the terminal.

Never from a command line, where every user of the host could read it.
"""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from stapsrv.errors import ConfigError

CREDENTIAL = "stap-server-password"
"""The name under which a service manager hands the password over (``$CREDENTIALS_DIRECTORY``)."""

_MOST_BYTES = 1024


def obtain_password(environ: Mapping[str, str], *, file: Path | None, descriptor: int | None) -> str:
    """Return the password (``-P``): the first line of whatever has it, without the line end.

    Looked at in this order: ``descriptor``, ``file``, ``$CREDENTIALS_DIRECTORY/stap-server-password``, and
    the terminal, where a person is asked.

    Raises:
        ConfigError: what was named cannot be read or is open to others, or nothing has it.
    """
    if descriptor is not None:
        with os.fdopen(descriptor, "rb") as stream:
            return _first_line(stream.read(_MOST_BYTES), where="the password's descriptor")
    if file is not None:
        return _from_file(file)
    if "CREDENTIALS_DIRECTORY" in environ:
        credential = Path(environ["CREDENTIALS_DIRECTORY"]) / CREDENTIAL
        if credential.exists():
            return _from_file(credential)
    try:
        with open("/dev/tty", "rb"):  # noqa: PTH123 - only to know that there is one
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
            return _first_line(stream.read(_MOST_BYTES), where=where)
    except OSError as exc:
        raise ConfigError(f"cannot be read ({exc.strerror})", where=where) from exc


def _first_line(data: bytes, *, where: str) -> str:
    line = data.split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        password = line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError("is not UTF-8 text", where=where) from exc
    if not password or len(line) >= _MOST_BYTES:
        raise ConfigError("holds no password in its first line", where=where)
    return password
