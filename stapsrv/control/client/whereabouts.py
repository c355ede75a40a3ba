"""Where a user's supervisors were started, remembered: STAT_PATH may be another one in the files by now.

A supervisor notes its STAT_PATH under the global file that it was started with, so that a command with the
same file finds it. A note is a hint: what is found there must be the user's, as below any STAT_PATH.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from stapsrv.system.json_file import JsonFile, with_fact

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = "supervisors"


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
