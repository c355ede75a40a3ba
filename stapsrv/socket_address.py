"""An address of a Unix socket that fits into the kernel's 108 bytes. A light module."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_MOST_ADDRESS_BYTES = 107
"""Of sockaddr_un's path, less the NUL at its end."""


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Hold an address of the socket ``path`` that ``bind`` and ``connect`` take, however long it is.

    Raises:
        OSError: the directory of a long path cannot be opened.
    """
    if len(os.fsencode(path)) <= _MOST_ADDRESS_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
