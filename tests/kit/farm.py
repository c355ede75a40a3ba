"""A farm of this host: Dask's scheduler and nodes as processes, on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from .ports import quiet_port
from .real import PATIENCE_S, FollowedLog
from .stap import make_stap

# Makes a module of any probe, for a node's own proof; what else it is given, it obeys.
OBEDIENT_NODE = """
case "$script" in
probe*) echo module >"$answer/stap_x.ko";;
*) eval "$script";;
esac
"""


@attrs.frozen
class Member:
    """A process of a farm, and what it logs."""

    process: subprocess.Popen[bytes]
    log: FollowedLog

    def kill(self) -> None:
        """End it as a crash of its host would."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def pause(self) -> None:
        """Have it do nothing more, as where its host hangs."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def begin_stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """End it as its service manager would; returns the exit status."""
        self.begin_stop()
        return self.process.wait(PATIENCE_S)


@attrs.frozen(kw_only=True)
class Farm:
    """Starts the members of a farm; those that run are killed at the end of :meth:`open`."""

    place: Path
    port: int
    environ: Mapping[str, str]
    options: Sequence[str]  # of each node
    host: str = "127.0.0.1"  # of the scheduler
    certified: Sequence[str] = ()  # the options that name certificates; without, there is no TLS
    user: Sequence[str] = ()  # what a command begins with that runs as another user
    _started: contextlib.ExitStack

    @property
    def address(self) -> str:
        return f"{'tls' if self.certified else 'tcp'}://{self.host}:{self.port}"

    @classmethod
    @contextlib.contextmanager
    def open(cls, place: Path, **more: Any) -> Iterator[Farm]:
        with contextlib.ExitStack() as started:
            yield cls(place=place, port=quiet_port(), started=started, **more)

    def start_scheduler(self) -> Member:
        scheduler = self.start("scheduler", "--listen", self.address, *self.certified)
        scheduler.log.wait("Farm: scheduling at ")
        return scheduler

    def begin_worker(self, *options: str, inside: Sequence[str] = (), **environ: str) -> Member:
        """Start a node; ``inside`` is what a command begins with that runs on another host."""
        own = ("--scheduler", self.address, *self.certified, *self.options, *options)
        return self.start("worker", *own, inside=inside, **environ)

    def start_workers(self, *options: str, count: int = 1) -> list[Member]:
        """Start nodes, and wait until each offers a release; n0, n1 and so on are the names of all so far."""
        begun = len(list(self.place.glob("worker*.log")))
        names = [f"n{number}" for number in range(begun, begun + count)]
        workers = [self.begin_worker("--name", name, *options) for name in names]
        for worker in workers:
            worker.log.wait("Farm: this is worker ")
            worker.log.wait("Farm: kernel release .* is offered")
        return workers

    def start(
        self, *words: str, program: str = "stapsrv.farm.cli", inside: Sequence[str] = (), **environ: str
    ) -> Member:
        """Start a program of this project; what it prints is its log."""
        log = self.place / f"{words[0]}{len(list(self.place.glob('*.log')))}.log"
        with log.open("wb") as output:
            process = self._started.enter_context(
                subprocess.Popen(
                    [*inside, *self.user, sys.executable, "-m", program, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**self.environ, **environ},
                )
            )
        self._started.callback(process.kill)
        return Member(process, self._started.enter_context(FollowedLog.open(log, process.pid)))


def processes_with(text: str) -> list[int]:
    """Return the processes of this host that have a text on their command lines, by number."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text.encode() in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
    return sorted(found)


@contextlib.contextmanager
def stand_in_farm(place: Path, build_tree: Path, *, script: str = OBEDIENT_NODE) -> Iterator[Farm]:
    """A farm with a stand-in for stap, whose nodes compile for the release of ``build_tree``."""
    stap = make_stap(place / "stap", script)
    environ = {
        "PATH": os.environ["PATH"],
        "SYSTEMTAP_STAP": str(stap),
        "SYSTEMTAP_DIR": str(place / "systemtap"),
        "HOME": str(place),
        "TMPDIR": str(place),
        "LANG": "C.UTF-8",
    }
    options = ("-r", str(build_tree), "--slots", "2", "--sandbox", "off")
    with Farm.open(place, environ=environ, options=options) as farm:
        yield farm
