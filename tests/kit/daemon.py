"""``stap-serverd`` as a process of its own, from readiness to its end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

READY_S = 60.0


class ServerProcess:
    """A daemon that is ready; what it told its service manager is in ``told``."""

    def __init__(self, process: subprocess.Popen[str], manager: socket.socket) -> None:
        self._process = process
        self._manager = manager
        self.pid = process.pid
        self.told: list[str] = []

    @property
    def name(self) -> str:
        return Path(f"/proc/{self.pid}/comm").read_text().strip()

    @property
    def port(self) -> int:
        """The port that it serves on, by its own words."""
        found = re.search(r"STATUS=serving on .*:(\d+)", "\n".join(self.told))
        assert found is not None, self.told
        return int(found[1])

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(timeout=60)

    def wait_told(self, assignment: str) -> list[str]:
        """Wait until the daemon tells its service manager this; returns what it told since the last time."""
        self.told = []
        deadline = time.monotonic() + READY_S
        pidfd = os.pidfd_open(self.pid)
        try:
            while assignment not in self.told:
                left = deadline - time.monotonic()
                readable, _, _ = select.select([self._manager.fileno(), pidfd], [], [], max(0.0, left))
                if self._manager.fileno() not in readable:
                    output = self._process.communicate(timeout=60)[1] if pidfd in readable else ""
                    raise AssertionError(f"{assignment} was not told, but {self.told} {output}")
                self.told += self._manager.recv(4096).decode().split("\n")
        finally:
            os.close(pidfd)
        return self.told


@contextlib.contextmanager
def start(arguments: Sequence[object], environ: Mapping[str, str]) -> Iterator[ServerProcess]:
    """Start a daemon, wait until it is ready, and end it for certain at the end of the block."""
    with (
        tempfile.TemporaryDirectory(prefix="notify.") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{directory}/socket")
        process = subprocess.Popen(
            [sys.executable, "-m", "stapsrv.daemon", *map(str, arguments)],
            env={**environ, "NOTIFY_SOCKET": f"{directory}/socket"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            server = ServerProcess(process, manager)
            server.wait_told("READY=1")
            yield server
        finally:
            process.kill()
            process.communicate(timeout=60)
