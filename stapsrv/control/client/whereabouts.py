"""Finds this user's supervisors, and those of others whose status may be read. A light module.

STAT_PATH may be another one in the files by now: a supervisor notes its own under the global file that it was
started with, so that a command with the same file finds it. A note is a hint: what is found there must be the
user's, as below any STAT_PATH.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from stapsrv.config.global_settings import (
    SYSTEM_SETTINGS,
    GlobalSettings,
    global_defaults,
    read_global_settings,
)
from stapsrv.control.client.accounts import caller_name
from stapsrv.system.json_file import JsonFile, with_fact

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = "supervisors"


def own_settings(environ: Mapping[str, str], config_file: Path | None) -> GlobalSettings:
    """Return the global settings for what this user starts; may raise ConfigError."""
    base = global_defaults(environ)
    # As the original: a variable of the environment that the files may change.
    base = base._replace(stap_user=environ.get("STAP_USER") or base.stap_user)
    return read_global_settings(base, config_file)


def own_stat_paths(
    own: GlobalSettings, config_file: Path | None, environ: Mapping[str, str]
) -> tuple[Path, ...]:
    """Return where this user's supervisors are: in STAT_PATH, or in the one before it was changed."""
    user = own.default_user(caller_name(), euid=os.geteuid())
    former = noted_stat_path(user, config_file, environ)
    return (own.stat_path,) if former in {None, own.stat_path} else (own.stat_path, former)


def readable_stat_paths(
    own: GlobalSettings, config_file: Path | None, environ: Mapping[str, str]
) -> list[Path]:
    """Return the directories to search for supervisors, this user's own first; may raise ConfigError."""
    # A plain user who cannot write the system's STAT_PATH has one of his own. In group stap-server he may
    # still ask the system's supervisors for their status.
    system = read_global_settings(SYSTEM_SETTINGS, config_file).stat_path
    return list(dict.fromkeys((*own_stat_paths(own, config_file, environ), system)))


def note_stat_path(directory: Path, config_file: Path | None, stat_path: Path) -> None:
    """Note in the user's SystemTap directory where a supervisor runs; a disk that is full costs the note."""
    notes = JsonFile(directory / _NAME, _is_path)
    notes.write(with_fact(notes.read(), _key(config_file), str(stat_path)))


def noted_stat_path(user: str, config_file: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return where the last supervisor of ``user`` with this global file was started, if that is known."""
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(user)
        directory = Path(entry.pw_dir, ".systemtap")
        # Root's variables say nothing of another user's directories.
        if entry.pw_uid == os.geteuid():
            own = Path(environ.get("HOME") or entry.pw_dir, ".systemtap")
            directory = Path(environ.get("SYSTEMTAP_DIR") or own)
        noted = JsonFile(directory / _NAME, _is_path, uid=entry.pw_uid).read().get(_key(config_file))
        return None if noted is None else Path(noted)
    return None


def _key(config_file: Path | None) -> str:
    return "" if config_file is None else str(config_file)


def _is_path(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value
