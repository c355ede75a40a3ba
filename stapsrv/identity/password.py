"""Secrets of the operator: the password of certificate databases, and the token of the web page.

From a descriptor, a file, a credential or the terminal: never from a command line, which every user of the
host can read.
"""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from stapsrv.errors import ConfigError

# Their names among a service manager's credentials ($CREDENTIALS_DIRECTORY).
CREDENTIAL = "stap-server-password"
WEB_CREDENTIAL = "stap-server-web-token"
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
            return _first_line(stream.read(_MAX_BYTES), "password", where="the password's descriptor")
    given = file or _credential(environ, CREDENTIAL)
    if given is not None:
        return _from_file(given, "password")
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


def obtain_web_token(environ: Mapping[str, str], *, file: Path | None) -> str | None:
    """Return the first line of ``file``, else of the credential ``stap-server-web-token``, else None.

    Raises:
        ConfigError: the file cannot be read, others can read it, or it is not UTF-8.
    """
    given = file or _credential(environ, WEB_CREDENTIAL)
    return None if given is None else _from_file(given, "token")


def _credential(environ: Mapping[str, str], name: str) -> Path | None:
    if "CREDENTIALS_DIRECTORY" not in environ:
        return None
    credential = Path(environ["CREDENTIALS_DIRECTORY"]) / name
    return credential if credential.exists() else None


def _from_file(file: Path, secret: str) -> str:
    where = f"{secret} file {file}"
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    "others than its owner have access to it", where=where, remedy=f"chmod 600 {file}"
                )
            return _first_line(stream.read(_MAX_BYTES), secret, where=where)
    except OSError as exc:
        raise ConfigError(f"cannot be read ({exc.strerror})", where=where) from exc


def _first_line(data: bytes, secret: str, *, where: str) -> str:
    line = data.split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError("is not UTF-8 text", where=where) from exc
    if not text or len(line) >= _MAX_BYTES:
        raise ConfigError(f"holds no {secret} in its first line", where=where)
    return text
