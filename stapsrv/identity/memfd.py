"""Files that live only in memory, for secrets that a program or a library insists on reading from a path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import attrs


@attrs.frozen
class MemoryFile:
    """An open, nameless file: this process and the children that inherit ``descriptor`` can reach it.

    Attributes:
        descriptor: give it to a child with ``pass_fds``, which keeps its number.
    """

    descriptor: int

    @property
    def path(self) -> str:
        """Its path as seen by whoever holds the descriptor; opening it starts at the first byte."""
        return f"/proc/self/fd/{self.descriptor}"

    def read(self) -> bytes:
        """Return all that it holds now, a child's writing included."""
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)


@contextmanager
def memory_file(content: bytes = b"") -> Iterator[MemoryFile]:
    """Open a memory file that holds ``content``; its memory is freed on exit."""
    descriptor = os.memfd_create("stapsrv")
    try:
        # Born 0777. Only this user can walk /proc/PID/fd anyway, but a secret should not hang on that alone.
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "wb", closefd=False) as stream:
            stream.write(content)
        yield MemoryFile(descriptor)
    finally:
        os.close(descriptor)
