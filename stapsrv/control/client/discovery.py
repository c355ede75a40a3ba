"""Finds the control sockets below STAT_PATH and asks each supervisor for its status: the start of ``status``.

Most of the time that a ``status`` takes goes into imports, so this module has a request of its own instead of
:mod:`stapsrv.control.client`.
"""

from __future__ import annotations

# Not socket, which spends more time on enums of its constants than all the rest of this module takes.
import _socket
import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stapsrv.control.protocol.status_fields import SettingsInfo, SupervisorInfo
from stapsrv.control.protocol.validation import checked
from stapsrv.errors import ConfigError
from stapsrv.system.unix_socket import address_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stapsrv.control.cli.console import OrphanedServer

# Below STAT_PATH/USER.
SOCKET_NAME = "control.sock"

# First line of a server's .stat file; those of other programs are left alone.
RECORD_MARK = b"# stapsrv server\n"
# Line in the file of a server whose port was assigned, and is none of its settings.
PORT_MARK = b"\n# stapsrv port: assigned\n"

_REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"status","params":{}}\n'
_ANSWER_S = 10.0
_MOST_ANSWER_S = 86_400.0
_READ_BYTES = 65_536
_MOST_ANSWER_BYTES = 16 * 1024 * 1024
_MOST_RECORD_BYTES = 64 * 1024
# Codes of the control protocol.
_NOT_PERMITTED, _SHUTTING_DOWN = -32001, -32004


def find_sockets(stat_path: Path) -> list[Path]:
    """Return the control sockets below STAT_PATH, by user name; only connecting shows if somebody listens.

    Each is in a directory with the name of its supervisor's user. Unreadable directories are left out.
    """
    found = []
    with contextlib.suppress(OSError):
        for directory in sorted(stat_path.iterdir()):
            path = directory / SOCKET_NAME
            with contextlib.suppress(OSError):
                if path.is_socket():
                    found.append(path)
    return found


class SupervisorScan:
    """The supervisors and the servers' ``.stat`` files found below some STAT_PATHs, if readable.

    Each supervisor may take ``answer_s`` seconds, by default ten. ``supervisors`` has the status of each
    that answers, ``problems`` a line for each that runs and does not answer.
    """

    def __init__(self, stat_paths: Iterable[Path], *, answer_s: float | None = None) -> None:
        self._answer_s = _ANSWER_S if answer_s is None else min(answer_s, _MOST_ANSWER_S)
        self.supervisors: list[SupervisorInfo] = []
        self.problems: list[str] = []
        # STAT_PATH and id of the servers that a supervisor hosts.
        self._hosted: set[tuple[str, int]] = set()
        self._records: list[os.DirEntry[str]] = []
        # User ids with a supervisor, as far as can be seen: their other records are no orphans.
        self._supervised: set[int] = set()
        for stat_path in stat_paths:
            with contextlib.suppress(OSError):
                for entry in sorted(os.scandir(stat_path), key=lambda entry: entry.name):
                    if entry.name.endswith(".stat"):
                        self._records.append(entry)
                    elif entry.is_dir(follow_symlinks=False):
                        self._ask_in(entry)

    def orphaned(self) -> list[OrphanedServer]:
        """Return the recorded servers whose supervisor is gone."""
        found: list[OrphanedServer] = []
        for entry in self._records:
            stat_path, name = os.path.split(entry.path)
            number = name.removesuffix(".stat")
            if number.isdecimal() and (stat_path, int(number)) not in self._hosted:
                with contextlib.suppress(OSError, ConfigError):
                    settings = self._read_orphan(entry)
                    if settings is not None:
                        found.append({"id": int(number), "settings": settings, "record": entry.path})
        return found

    def _ask_in(self, directory: os.DirEntry[str]) -> None:
        owner = directory.stat(follow_symlinks=False).st_uid
        try:
            info = _ask(Path(directory.path, SOCKET_NAME), self._answer_s)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except PermissionError:
            self._supervised.add(owner)
            return
        except (OSError, ValueError) as exc:
            self.problems.append(f"the supervisor of user {directory.name} does not answer: {exc}")
            self._supervised.add(owner)
            return
        self._supervised.add(owner)
        self.supervisors.append(info)
        stat_path = os.path.dirname(directory.path)  # noqa: PTH120 - a path as text
        self._hosted.update((stat_path, server["id"]) for server in info["servers"])

    def _read_orphan(self, entry: os.DirEntry[str]) -> SettingsInfo | None:
        """Return the settings in a record whose user has no supervisor; ConfigError: it is damaged."""
        if entry.stat(follow_symlinks=False).st_uid in self._supervised:
            return None
        with open(entry.path, "rb") as file:  # noqa: PTH123 - a path as text
            text = file.read(_MOST_RECORD_BYTES)
        return _settings_in(text) if text.startswith(RECORD_MARK) else None


def _ask(path: Path, answer_s: float) -> SupervisorInfo:
    """Return the status of the supervisor that listens at ``path``, or raise OSError or ValueError.

    FileNotFoundError and ConnectionRefusedError: there is none, or it is ending.
    """
    with contextlib.closing(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)) as connection:
        # A deadline for the whole answer: other users' supervisors are asked, too.
        ends = time.monotonic() + answer_s
        connection.settimeout(answer_s)
        with address_of(path) as address:
            connection.connect(address)
        connection.sendall(_REQUEST)
        line = _read_line(connection, ends)
    try:
        answer = json.loads(line)
        error = answer.get("error")
        if error is None:
            # What supervisors of other users say must not make root's command stumble.
            return checked(answer["result"], SupervisorInfo, name="result", exact=False)
        code, reason = error["code"], error["message"]
    except (AttributeError, LookupError, TypeError, ValueError) as exc:
        raise ValueError("its answer cannot be understood") from exc
    if code == _NOT_PERMITTED:
        raise PermissionError
    if code == _SHUTTING_DOWN:
        raise ConnectionRefusedError
    raise ValueError(reason)


def _read_line(connection: _socket.socket, ends: float) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        left = ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left)
        more = connection.recv(_READ_BYTES)
        data += more
        if not more or len(data) > _MOST_ANSWER_BYTES:
            raise ValueError("its answer has no end")
    return bytes(data)


def _settings_in(record: bytes) -> SettingsInfo:
    from stapsrv.config.files import decode_config, values_from  # noqa: PLC0415 - rarely needed
    from stapsrv.config.table import SERVER_SETTINGS  # noqa: PLC0415
    from stapsrv.control.protocol.schema import setting_info  # noqa: PLC0415

    values = values_from(decode_config(record, where="record"), where="record", rows=SERVER_SETTINGS)
    if PORT_MARK in record:
        values.pop("port", None)
    settings: SettingsInfo = {}
    for row in SERVER_SETTINGS:
        if row.attribute in values:
            settings[row.variable] = setting_info(row, values[row.attribute])
    return settings
