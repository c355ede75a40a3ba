"""Where a user's supervisors were started, remembered: STAT_PATH may be another one in the files by now.

A supervisor notes its STAT_PATH under the global file that it was started with, so that a command with the
same file finds it. A note is a hint: what is found there must be the user's, as below any STAT_PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

from stapsrv.system.atomic_file import replace_file
from stapsrv.system.trusted_files import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = "supervisors"
_MOST_BYTES = 65_536
_MOST_NOTES = 100


def note_stat_path(directory: Path, config_file: Path | None, stat_path: Path) -> None:
    """Note in the user's SystemTap directory where a supervisor runs; a disk that is full costs the note."""
    notes = _read(directory / _NAME, uid=os.geteuid())
    notes.pop(_key(config_file), None)
    notes[_key(config_file)] = str(stat_path)
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_file(directory / _NAME, json.dumps(dict([*notes.items()][-_MOST_NOTES:])))


def noted_stat_path(user: str, config_file: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return where the last supervisor of ``user`` with this global file was started, if that is known."""
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(user)
        directory = Path(entry.pw_dir, ".systemtap")
        # Root's variables say nothing of another user's directories.
        if entry.pw_uid == os.geteuid():
            own = Path(environ.get("HOME") or entry.pw_dir, ".systemtap")
            directory = Path(environ.get("SYSTEMTAP_DIR") or own)
        noted = _read(directory / _NAME, uid=entry.pw_uid).get(_key(config_file))
        return None if noted is None else Path(noted)
    return None


def _key(config_file: Path | None) -> str:
    return "" if config_file is None else str(config_file)


def _read(file: Path, *, uid: int) -> dict[str, str]:
    """Return the notes in a user's file; none in one that is another's."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        # Root reads it, too.
        owner, data = read_file(file, max_bytes=_MOST_BYTES)
        found = json.loads(data)
        if owner in {0, uid} and isinstance(found, dict):
            return {name: path for name, path in found.items() if _is_path(path)}
    return {}


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value
