"""Keeps a few facts by name from one process to the next, in one small JSON file.

Such a memory is a convenience: a file that is lost or damaged costs nothing but the facts in it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeGuard, TypeVar

from stapsrv.system.atomic_file import replace_file
from stapsrv.system.trusted_files import read_file

_T = TypeVar("_T")

# The one that was written longest ago is forgotten first.
_MAX_FACTS = 500
_MOST_BYTES = 1024 * 1024


class JsonFile(Generic[_T]):
    """One such file of user ``uid``; read and written in threads, since its file system may hang.

    Drops what ``is_fact`` rejects, and all in a file that somebody else but root has written.
    """

    def __init__(
        self, file: Path, is_fact: Callable[[object], TypeGuard[_T]], *, uid: int | None = None
    ) -> None:
        self._file = file
        self._is_fact = is_fact
        self._owners = {0, os.geteuid() if uid is None else uid}

    def read(self) -> dict[str, _T]:
        """Return all facts by their names, the oldest first."""
        try:
            owner, data = read_file(self._file, max_bytes=_MOST_BYTES)
            found = json.loads(data) if owner in self._owners else None
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: fact for name, fact in found.items() if self._is_fact(fact)}

    def write(self, facts: Mapping[str, _T]) -> None:
        """Have these facts, and no others, on disk; a disk that is full costs them alone."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            replace_file(self._file, json.dumps(dict(facts)))


def with_fact(facts: Mapping[str, _T], name: str, fact: _T) -> dict[str, _T]:
    """Return ``facts`` with a new one, or a new value, and without the oldest beyond the most."""
    others = [item for item in facts.items() if item[0] != name]
    return dict([*others, (name, fact)][-_MAX_FACTS:])
