"""``stap-serverd`` as a process of its own, from readiness to its end."""

from __future__ import annotations

import contextlib
import fcntl
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
from typing import NamedTuple, Protocol

READY_S = 60.0
PROGRAM = (sys.executable, "-m", "stapsrv.daemon")


class SupportsFileno(Protocol):
    def fileno(self) -> int: ...


Passed = tuple[str, SupportsFileno]
"""A name, and what a service manager opened under it."""


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
        found = re.search(r"STATUS=serving on port (\d+)", "\n".join(self.told))
        assert found is not None, self.told
        return int(found[1])

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

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
def start(
    arguments: Sequence[object],
    environ: Mapping[str, str],
    *,
    passed: Sequence[Passed] = (),
    stdout: int = subprocess.DEVNULL,
    program: Sequence[str] = PROGRAM,
) -> Iterator[ServerProcess]:
    """Start a daemon, wait until it is ready, and end it for certain at the end of the block.

    Args:
        arguments: of its command line.
        environ: its environment.
        passed: what a service manager opened for it.
        stdout: as of subprocess.
        program: the daemon, or what runs it.
    """
    with (
        passing(passed) as passing_on,
        tempfile.TemporaryDirectory(prefix="notify.", dir="/tmp") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{directory}/socket")
        process = subprocess.Popen(
            [*passing_on.command, *program, *map(str, arguments)],
            env={**environ, **passing_on.environ, "NOTIFY_SOCKET": f"{directory}/socket"},
            pass_fds=passing_on.descriptors,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
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


class Passing(NamedTuple):
    """How a child comes to descriptors 3 and up, as sd_listen_fds(3) has them: what to start it with."""

    command: tuple[str, ...]
    environ: dict[str, str]
    descriptors: tuple[int, ...]


@contextlib.contextmanager
def passing(files: Sequence[Passed]) -> Iterator[Passing]:
    """Pass files to a child; what ``LISTEN_PID`` it has already stays."""
    with contextlib.ExitStack() as cleanup:
        descriptors = tuple(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD, 50) for _, file in files)
        for descriptor in descriptors:
            cleanup.callback(os.close, descriptor)
        moved = " ".join(f"{3 + number}<&{descriptor}" for number, descriptor in enumerate(descriptors))
        environ = {"LISTEN_FDS": str(len(files)), "LISTEN_FDNAMES": ":".join(name for name, _ in files)}
        # Only the process itself knows the number that has to be said.
        command = ("bash", "-c", f'LISTEN_PID=${{LISTEN_PID-$$}} exec "$@" {moved}', "bash")
        yield Passing(command, environ, descriptors) if files else Passing((), {}, ())
