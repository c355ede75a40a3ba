"""Trees for tests: of processes, and how to see that nothing of one is left; and of directories."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import textwrap
import time
from pathlib import Path

import anyio

from .footprint import children
from .real import PATIENCE_S


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
        with anyio.fail_after(60):
            while True:
                await anyio.wait_readable(self._fd)
                if line := os.read(self._fd, 4096):
                    return line.decode()

    async def wait_gone(self) -> None:
        with anyio.fail_after(60):
            while True:
                await anyio.wait_readable(self._fd)
                try:
                    if not os.read(self._fd, 4096):
                        return
                except BlockingIOError:
                    continue


class ProcessObserver:
    """The descendants that a process has at one moment, each held by a descriptor that reports its end."""

    def __init__(self, pid: int) -> None:
        self.names: list[str] = []
        self._held: dict[int, str] = {}
        self._collect(pid)

    def wait_gone(self, seconds: float = PATIENCE_S) -> None:
        """Wait until all have ended."""
        left = self.wait_left(seconds)
        assert not left, f"still there after {seconds} s: {left}"

    def wait_left(self, seconds: float) -> list[str]:
        """Wait until all have ended, for so long at most; returns the names of those that are left."""
        deadline = time.monotonic() + seconds
        while self._held:
            ended = select.select(list(self._held), [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ended:
                break
            for pidfd in ended:
                del self._held[pidfd]
                os.close(pidfd)
        return list(self._held.values())

    def kill(self) -> None:
        """End those that are left."""
        for pidfd in self._held:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self.wait_gone()

    def _collect(self, pid: int) -> None:
        for child in children(pid):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                name = Path(f"/proc/{child}/comm").read_text().strip()
                self._held[os.pidfd_open(child)] = name
                self.names.append(name)
                self._collect(child)


def shell(script: str, *arguments: object) -> list[str]:
    """Return a command that runs ``script`` with these arguments."""
    return ["/bin/sh", "-c", textwrap.dedent(script), "sh", *map(str, arguments)]


# More than Python's own bound on recursion.
DEPTH = 1100


def make_deep(top: Path, depth: int = DEPTH) -> None:
    """Make a chain of directories as a compile can: its path is longer than the kernel takes."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
