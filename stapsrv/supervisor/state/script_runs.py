"""The results of the last checks of scripts, kept from one process to the next in one bounded file."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from stapsrv.scripts.history import History, decode_history, encode_history
from stapsrv.system.atomic_file import replace_file
from stapsrv.system.trusted_files import read_file

# Of MAX_CELLS scripts with all their changes, far less; nobody else's file is read whole into memory.
_MOST_BYTES = 64 * 1024 * 1024


class ScriptRuns:
    """The file of a user's checks; read and written in threads, since its file system may hang."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> History:
        """Return what is remembered; nothing of a file that is missing, damaged or somebody else's."""
        try:
            owner, data = read_file(self._file, max_bytes=_MOST_BYTES)
            return decode_history(json.loads(data)) if owner in {0, os.geteuid()} else History()
        except (OSError, ValueError, RecursionError):
            return History()

    def write(self, history: History) -> None:
        """Remember a history in place of the last; a disk that is full costs it alone."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            replace_file(self._file, json.dumps(encode_history(history), separators=(",", ":")))
