"""Finds the supervisors below STAT_PATH, and the records of servers whose supervisor is gone.

Others may write to STAT_PATH: what is found there counts for the user who owns it, and for nobody else.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from stapsrv.control.client.status_call import StatusCall, answer_all
from stapsrv.control.protocol.status_fields import SettingsInfo, SupervisorInfo
from stapsrv.errors import ConfigError
from stapsrv.system.trusted_files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stapsrv.control.cli.console import OrphanedServer

# Below STAT_PATH/USER.
SOCKET_NAME = "control.sock"

# First line of a server's .stat file; those of other programs are left alone.
RECORD_MARK = b"# stapsrv server\n"
# Line in the file of a server whose port was assigned, and is none of its settings.
PORT_MARK = b"\n# stapsrv port: assigned\n"

_ANSWER_S = 10.0
_MOST_ANSWER_S = 86_400.0
_MOST_RECORD_BYTES = 64 * 1024
# Of one user; a supervisor that hosts more has never been seen.
_MOST_RECORDS = 10_000
_RECORD_NAME = re.compile(r"([0-9]{1,18})\.stat")


def find_sockets(stat_path: Path) -> list[Path]:
    """Return the control sockets below STAT_PATH, by user name; only connecting shows if somebody listens.

    Each is in a directory with the name of its supervisor's user, who owns it. Others are left out.
    """
    with contextlib.suppress(OSError):
        sockets = (
            Path(directory.path, SOCKET_NAME) for directory in _entries(stat_path) if _is_own(directory)
        )
        return [path for path in sockets if _is_socket(path)]
    return []


class SupervisorScan:
    """The supervisors and the servers' ``.stat`` files found below some STAT_PATHs, if readable.

    All supervisors are asked at once, and all have answered within ``answer_s`` seconds, by default ten, or
    count as silent. ``supervisors`` has the status of each that answers, ``problems`` a line for each that
    runs and does not answer. What belongs to another user than it says is passed over (``docs/trust.md``).
    """

    def __init__(self, stat_paths: Iterable[Path], *, answer_s: float | None = None) -> None:
        self.supervisors: list[SupervisorInfo] = []
        self.problems: list[str] = []
        self._records: list[tuple[int, os.DirEntry[str]]] = []
        # User ids with a supervisor, as far as can be seen: their records are no orphans.
        self._supervised: set[int] = set()
        calls: list[StatusCall] = []
        for stat_path in stat_paths:
            with contextlib.suppress(OSError):
                for entry in _entries(stat_path):
                    if match := _RECORD_NAME.fullmatch(entry.name):
                        self._records.append((int(match[1]), entry))
                    elif _is_own(entry):
                        owner = entry.stat(follow_symlinks=False).st_uid
                        calls.append(StatusCall(Path(entry.path, SOCKET_NAME), user=entry.name, uid=owner))
        answer_all(calls, _ANSWER_S if answer_s is None else min(answer_s, _MOST_ANSWER_S))
        for call in calls:
            self._take(call)

    def orphaned(self) -> list[OrphanedServer]:
        """Return the recorded servers whose supervisor is gone."""
        found: list[OrphanedServer] = []
        number_read: dict[int, int] = {}
        for server_id, entry in self._records:
            with contextlib.suppress(OSError, ConfigError):
                owner = entry.stat(follow_symlinks=False).st_uid
                number_read[owner] = number_read.get(owner, 0) + 1
                if owner in self._supervised or number_read[owner] > _MOST_RECORDS:
                    continue
                settings = _read_record(entry.path)
                if settings is not None:
                    found.append({"id": server_id, "settings": settings, "record": entry.path})
        return found

    def _take(self, call: StatusCall) -> None:
        match call.outcome:
            case FileNotFoundError() | ConnectionRefusedError():
                return
            case PermissionError():
                pass
            case BaseException() as exc:
                self.problems.append(f"the supervisor of user {call.user} does not answer: {exc}")
            case info:
                self.supervisors.append(info)
        self._supervised.add(call.uid)


def is_user(name: str, uid: int) -> bool:
    """Whether a user name is the one of this user id."""
    try:
        return pwd.getpwuid(uid).pw_name == name
    except KeyError:
        return False


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_own(directory: os.DirEntry[str]) -> bool:
    """Whether it is a directory that belongs to the user whose name it has."""
    try:
        owner = directory.stat(follow_symlinks=False).st_uid
        return directory.is_dir(follow_symlinks=False) and is_user(directory.name, owner)
    except OSError:
        return False


def _is_socket(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(path.lstat().st_mode)
    return False


def _read_record(path: str) -> SettingsInfo | None:
    """Return the settings in a record of ours that its user wrote; may raise ConfigError or OSError."""
    owner, text = read_file(path, max_bytes=_MOST_RECORD_BYTES)
    if not text.startswith(RECORD_MARK):
        return None
    settings = _settings_in(text)
    user = settings.get("USER")
    # A record without a user would be anybody's.
    return settings if isinstance(user, str) and is_user(user, owner) else None


def _settings_in(record: bytes) -> SettingsInfo:
    from stapsrv.config.files import decode_config, server_settings_from  # noqa: PLC0415 - rarely needed
    from stapsrv.control.protocol.schema import settings_info  # noqa: PLC0415

    settings = settings_info(server_settings_from(decode_config(record, where="record"), where="record"))
    if PORT_MARK in record:
        settings.pop("PORT", None)
    return settings
