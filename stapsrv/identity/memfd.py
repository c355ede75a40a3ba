"""Files in memory only, for secrets that a program or a library reads from a path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import attrs


@attrs.frozen
class MemoryFile:
    """An open, nameless file for this process and the children that get ``descriptor`` (``pass_fds``)."""

    descriptor: int

    @property
    def path(self) -> str:
        """Its path in every process that holds the descriptor; opening it starts at the first byte."""
        return f"/proc/self/fd/{self.descriptor}"

    def read(self) -> bytes:
        """Return its contents, with what children wrote."""
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)


@contextmanager
def memory_file(content: bytes = b"") -> Iterator[MemoryFile]:
    """Hold a memory file with this content."""
    descriptor = os.memfd_create("stapsrv")
    try:
        # The kernel makes it 0777. Only this user can open /proc/PID/fd, but that should not be all.
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "wb", closefd=False) as stream:
            stream.write(content)
        yield MemoryFile(descriptor)
    finally:
        os.close(descriptor)
