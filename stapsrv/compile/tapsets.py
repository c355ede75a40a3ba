"""What the tapsets of a server lead to beside the kernel, read again only after they have changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from stapsrv.compile.scripts import outward_names
from stapsrv.compile.trees import Place
from stapsrv.filework import FileWork

_LONG_S = 60.0
"""For a look at many files."""


class Tapsets:
    """The tapsets of a process's servers."""

    def __init__(self) -> None:
        self._known: dict[tuple[Place, ...], tuple[int, frozenset[str]]] = {}

    async def outward_names(self, places: tuple[Place, ...], changes: int, files: FileWork) -> frozenset[str]:
        """Return by which names tapsets lead to what is not known of the host.

        Args:
            places: where they are.
            changes: another number after each change of theirs.
            files: looks at them.

        Raises:
            OSError: they cannot be looked at, or not in time.
        """
        known = self._known.get(places)
        if known is None or known[0] != changes:
            names = await files.run(partial(read_outward_names, places), patience_s=_LONG_S)
            known = self._known[places] = (changes, names)
        return known[1]


def read_outward_names(places: Sequence[Place]) -> frozenset[str]:
    """Read all tapset files in directories, and return by which names they lead elsewhere.

    Raises:
        OSError: a directory cannot be looked at.
    """
    texts = []
    for place in places:
        for path in _files(place.path):
            try:
                texts.append(path.read_bytes())
            except OSError:
                # Not for stap to read either.
                continue
    return outward_names(texts)


def _files(top: str) -> Iterator[Path]:
    """Give the tapset files below a directory; links to directories are followed, as stap does."""
    seen: set[tuple[int, int]] = set()
    for directory, below, names in os.walk(top, followlinks=True):
        status = Path(directory).stat()
        if (status.st_dev, status.st_ino) in seen:
            below.clear()  # a link in a circle, or another one to the same place
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(directory, name) for name in names if name.endswith((".stp", ".stpm")))
