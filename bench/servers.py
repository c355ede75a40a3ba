"""Time the control of many servers: the original ``stap-server`` and this one in one run.

Both get the same configuration directory of N servers, each in a directory of its own under TMPDIR, and are
told to start, to report, to restart and to stop. Certificates are made before the clock runs. The start of
either is timed until every server accepts connections, since the original's returns before that.

Run as a plain user (``make bench`` runs it as stap-server). It ends by itself, and stops what it started.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ORIGINAL = Path("/usr/bin/stap-server")
OURS = Path(sys.executable).with_name("stap-server")
ORIGINAL_LOGS = Path("/var/log/stap-server")
COMMAND_S = 180.0
"""The longest that a command may take: the original needs a minute to stop twenty servers."""


class Fleet:
    """N configured servers, and the command that controls them."""

    def __init__(
        self,
        command: Path,
        directory: Path,
        *,
        release: str,
        count: int,
        first_port: int,
        runtime: Path | None = None,
    ) -> None:
        self.command = command
        self.directory = directory
        self.ports = range(first_port, first_port + count)
        (directory / "conf.d").mkdir(parents=True)
        (directory / "stat").mkdir()
        for port in self.ports:
            text = f"RELEASE={release}\nPORT={port}\nNICKNAME=server{port}\n"
            text += f"RUNTIME={runtime}\n" if runtime is not None else ""
            (directory / "conf.d" / f"{port}.conf").write_text(text)
        self.config = directory / "global.conf"
        self.config.write_text(
            f"CONFIG_PATH={directory}/conf.d\nSTAT_PATH={directory}/stat\nLOG_FILE={directory}/log\n"
        )
        own = {"SYSTEMTAP_DIR": str(directory / "systemtap"), "HOME": str(directory), "STAPSRV_MDNS": "no"}
        self.environ = {**os.environ, **own}

    def call(self, action: str) -> float:
        """Run one action; returns its wall time in seconds."""
        began = time.perf_counter()
        done = subprocess.run(
            [str(self.command), action, "-c", str(self.config)],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        elapsed = time.perf_counter() - began
        if done.returncode:
            print(
                f"  {self.command} {action}: exit {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}"
            )
        return elapsed

    def start(self) -> tuple[float, float]:
        """Start all; returns when the command was done and when the last server accepted, in seconds."""
        began = time.perf_counter()
        returned = self.call("start")
        for port in self.ports:
            _wait_accepting(port)
        return returned, time.perf_counter() - began

    def processes(self) -> list[int]:
        """The server processes that belong to this fleet, by their environment."""
        found = []
        mark = f"SYSTEMTAP_DIR={self.environ['SYSTEMTAP_DIR']}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                name = (process / "comm").read_text().strip()
                if name == "stap-serverd" and mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    def pss_kb(self) -> int:
        """Memory of all its processes; what several share is divided between them (kB)."""
        total = 0
        for pid in self.processes():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
            total += int(match[1]) if match else 0
        return total

    def end(self) -> None:
        """Stop what is left, by process id."""
        for pid in self.processes():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue


def _wait_accepting(port: int) -> None:
    deadline = time.monotonic() + COMMAND_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)  # nothing else tells when the original accepts
        else:
            return


@contextmanager
def fleet(command: Path, directory: Path, **options: object) -> Iterator[Fleet]:
    made = Fleet(command, directory, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.end()


def measure(one: Fleet, *, rounds: int) -> dict[str, float]:
    """Return medians in seconds over ``rounds``, and the memory of the idle fleet in MB."""
    one.start()
    one.call("stop")
    figures: dict[str, list[float]] = {}
    memory = 0
    for _ in range(rounds):
        returned, ready = one.start()
        memory = one.pss_kb()
        for name, value in (
            ("start, until the command returns", returned),
            ("start, until all accept", ready),
            ("status", statistics.median(one.call("status") for _ in range(5))),
            ("restart", one.call("restart")),
            ("stop", one.call("stop")),
        ):
            figures.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in figures.items()} | {
        "memory, MB (PSS)": memory / 1024
    }


def _newest_release() -> str:
    """Return the last of the installed releases; the servers only need one that exists."""
    return max((path.parent.name for path in Path("/lib/modules").glob("*/build")), default="")


def timed(command: list[str], *, runs: int) -> float:
    """Return the median wall time of a command in seconds."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began

    return statistics.median(once() for _ in range(runs))


def print_table(original: Mapping[str, float], ours: Mapping[str, float], pass_s: float) -> None:
    print(f"{'':34}{'original':>12}{'stapsrv':>12}{'ratio':>10}")
    for name, value in original.items():
        print(f"{name:34}{value:12.3f}{ours[name]:12.3f}{ours[name] / value:10.3f}")
    print(f"\nstatus takes {ours['status'] / pass_s:.1f} times `python -c pass` ({pass_s * 1000:.0f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., argparse.Action] = parser.add_argument
    add("--release", default=_newest_release(), help="an installed kernel release (default: %(default)s)")
    add("--servers", type=int, default=20)
    add("--rounds", type=int, default=1, help="the original needs two minutes for each")
    add("--first-port", type=int, default=7700)
    add("--ours-only", action="store_true", help="leave the original out")
    add("--json", action="store_true")
    given = parser.parse_args()
    if not given.ours_only and not os.access(ORIGINAL_LOGS, os.W_OK):
        parser.exit(
            1, f"the original always logs to {ORIGINAL_LOGS}: make that directory, or use --ours-only\n"
        )
    directory = Path(tempfile.mkdtemp(prefix="bench-servers."))
    options = {"release": given.release, "count": given.servers, "first_port": given.first_port}
    try:
        with fleet(OURS, directory / "ours", **options) as one:
            ours = measure(one, rounds=max(3, given.rounds))
        original = {name: float("nan") for name in ours}
        if not given.ours_only:
            with fleet(ORIGINAL, directory / "original", **options) as one:
                original = measure(one, rounds=given.rounds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    pass_s = timed([sys.executable, "-c", "pass"], runs=11)
    if given.json:
        print(json.dumps({"original": original, "stapsrv": ours, "python_pass": pass_s}))
    else:
        print_table(original, ours, pass_s)


if __name__ == "__main__":
    main()
