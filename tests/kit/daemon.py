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

    def __init__(self, process: subprocess.Popen[str], told: list[str]) -> None:
        self._process = process
        self.pid = process.pid
        self.told = told

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
            yield ServerProcess(process, _wait_ready(process, manager))
        finally:
            process.kill()
            process.communicate(timeout=60)


def _wait_ready(process: subprocess.Popen[str], manager: socket.socket) -> list[str]:
    told: list[str] = []
    deadline = time.monotonic() + READY_S
    pidfd = os.pidfd_open(process.pid)
    try:
        while "READY=1" not in told:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([manager.fileno(), pidfd], [], [], max(0.0, left))
            if manager.fileno() not in readable:
                raise AssertionError(f"no readiness: {told} {process.communicate(timeout=60)[1]}")
            told += manager.recv(4096).decode().split("\n")
    finally:
        os.close(pidfd)
    return told
