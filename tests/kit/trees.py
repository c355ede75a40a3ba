"""Child trees for tests: what runs in them, and how to see that nothing of one is left."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import anyio


class Witness:
    """A FIFO that a child tree holds open: end of file means that the last of the tree is gone."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "witness"
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def close(self) -> None:
        os.close(self._fd)

    async def wait_line(self) -> str:
        """Wait until somebody of the tree has written a line."""
        with anyio.fail_after(20):
            while True:
                await anyio.wait_readable(self._fd)
                if line := os.read(self._fd, 4096):
                    return line.decode()

    async def wait_gone(self) -> None:
        with anyio.fail_after(20):
            while True:
                await anyio.wait_readable(self._fd)
                try:
                    if not os.read(self._fd, 4096):
                        return
                except BlockingIOError:
                    continue


def shell(script: str, *arguments: object) -> list[str]:
    """Return a command that runs ``script`` with these arguments."""
    return ["/bin/sh", "-c", textwrap.dedent(script), "sh", *map(str, arguments)]
