#!/usr/bin/env python3
"""Measure what a farm adds to compiles, and what becomes of one whose node is killed.

A scheduler, two nodes of one slot each and a server that has them compile are processes of this host, joined
by TLS, with the real stap; beside them is a server that compiles by itself. All are asked in turn for scripts
that nobody compiled before, built by make, and the figures that count are those of medians of one run. All
that is made is in one temporary directory, and gone at the end; nothing leaves this host.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
from compare import check, end, exchange, progress
from loads import Bench, Verdict, median, spread, timed, together
from performance import plain

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.farm import Farm, Member
from kit.footprint import descendants
from kit.real import Installation, Server, Unavailable

from stapsrv.farm.ca import create_authority, issue

LOCAL, FARM = "server alone", "farm"
_BURST = 4
_KILL_AFTER_S = 1.0
_NODES = ("n0", "n1")


@attrs.frozen
class Contest:
    """Two servers, one of which has a farm.

    Attributes:
        bench: makes scripts, and asks for them.
        farm: the farm.
        nodes: its nodes, by name.
        ports: the servers', by their names.
        deadline: on the monotonic clock; no round begins after it.
    """

    bench: Bench
    farm: Farm
    nodes: dict[str, Member]
    ports: dict[str, int]
    deadline: float

    def begin_node(self, name: str) -> None:
        """Start a node, and wait until it is proved."""
        node = self.farm.begin_worker("--name", name)
        self.nodes[name] = node
        node.log.wait("Farm: this is worker ")
        node.log.wait("is offered")

    def alternate(self, count: int, passes: str, scripts: int = 1) -> dict[str, list[float]]:
        """Ask both in turn for new scripts, so many at once; return the times."""
        values: dict[str, list[float]] = {who: [] for who in self.ports}
        for number in range(count):
            if time.monotonic() > self.deadline and number:
                break
            for who in self.ports if number % 2 else reversed(self.ports):
                payloads = [self.bench.payload(self.bench.script(), passes) for _ in range(scripts)]
                values[who].append(together(who, self.ports[who], payloads))
        return values

    def with_kill(self) -> float:
        """Have the node of a compile killed, and return after how long the right answer is there (s)."""
        script = self.bench.script()
        payload = self.bench.payload(script)
        with ThreadPoolExecutor(1) as thread:
            began = time.monotonic()
            answered = thread.submit(timed, lambda: _check_module(self.ports[FARM], payload))
            time.sleep(_KILL_AFTER_S - (time.monotonic() - began))
            busy = max(self.nodes, key=lambda name: len(descendants(self.nodes[name].process.pid)))
            if answered.done():
                progress("  a compile took less than a second")
            self.nodes[busy].kill()
            seconds = answered.result()
        self.begin_node(busy)
        return seconds


def _check_module(port: int, payload: bytes) -> None:
    answer = exchange(FARM, port, payload)
    if answer.rc != 0 or not any(name.endswith(".ko") for name in answer.files):
        sys.exit(f"{FARM} has failed:\n{answer.stderr}")


def measure(contest: Contest, rounds: int) -> list[Verdict]:
    """Measure all; return the rows."""
    verdicts = []
    for load, passes, count in (
        ("new script, one client", "-p4", 2 * rounds),
        ("the same up to pass 2", "-p2", 5 * rounds),
    ):
        progress(f"measuring: {load}")
        values = contest.alternate(count, passes)
        added_ms = 1000 * (median(values[FARM]) - median(values[LOCAL]))
        verdicts.append(
            _verdict(load, values, f"{added_ms:+.0f} ms", "at most +30 ms", is_reached=added_ms <= 30)
        )
        if passes == "-p4":
            single_s = median(values[FARM])
    progress(f"measuring: {_BURST} at once")
    values = contest.alternate(rounds, "-p4", _BURST)
    ratio = median(values[LOCAL]) / median(values[FARM])
    verdicts.append(
        _verdict(
            f"{_BURST} new scripts at once, two nodes of one slot, beside two slots",
            values,
            f"{ratio:.2f} times the throughput",
            "at least 0.95",
            is_reached=ratio >= 0.95,
        )
    )
    progress("measuring: a killed node")
    killed = [
        contest.with_kill() for number in range(rounds) if time.monotonic() < contest.deadline or not number
    ]
    times = statistics.median(killed) / (2 * single_s)
    verdicts.append(
        _verdict(
            f"new script whose node is killed after {_KILL_AFTER_S:g} s",
            {LOCAL: [], FARM: killed},
            f"{times:.2f} times two compiles",
            "at most 1.3",
            is_reached=times <= 1.3,
        )
    )
    return verdicts


def _verdict(
    load: str, values: dict[str, list[float]], measured: str, target: str, *, is_reached: bool
) -> Verdict:
    cells = [spread(values[who]) if values[who] else "" for who in (LOCAL, FARM)]
    return Verdict(f"{load} ({len(values[FARM])}x)", *cells, measured, target, is_reached)


@contextlib.contextmanager
def open_contest(bench: Bench, place: Path, deadline: float) -> Iterator[Contest]:
    """Start all; everything is ended with the block."""
    place.mkdir()
    create_authority(place / "ca")
    member = issue(place / "ca", "member")
    files = (place / "ca" / "ca.pem", member.certificate_file, member.key_file)
    certified = [str(word) for pair in zip(("--ca", "--cert", "--key"), files, strict=True) for word in pair]
    names = ("--farm-ca", "--farm-cert", "--farm-key")
    own = [str(word) for pair in zip(names, files, strict=True) for word in pair]
    release, runtime = bench.installation.release, bench.installation.runtime
    user = bench.user()
    progress(f"compiling once for {release}")
    check(LOCAL, user.local("-p4", "-e", bench.script()))
    # Nodes find out about the kernel when they prove themselves, the other server knows what its user does.
    environ = user.environ(SYSTEMTAP_DIR=str(place / "systemtap"))
    # Without it all choose where they compile.
    environ.pop("TMPDIR")
    options = ("-r", release, "-R", str(runtime), "--slots", "1", "--prepared", "no")
    with (
        Farm.open(place, environ=environ, options=options, certified=certified) as farm,
        bench.serving("--prepared=no", "--max-threads", "2", user=user) as alone,
        contextlib.ExitStack() as served,
    ):
        farm.start_scheduler()
        contest = Contest(bench, farm, {}, {LOCAL: alone.port}, deadline)
        for name in _NODES:
            contest.begin_node(name)
        server: Server = served.enter_context(
            bench.serving("--prepared=no", "--engine", "dask", "--farm", farm.address, *own, user=user)
        )
        server.log.wait("Farm: connected to .* has 2 workers")
        contest.ports[FARM] = server.port
        for who, port in contest.ports.items():
            # By the real client, whose words tell more than a status.
            check(who, user.via(port, "-p4", "-e", bench.script()))
        yield contest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="how often both are asked in turn")
    parser.add_argument(
        "--limit", type=float, default=900.0, metavar="S", help="begin no further round after this time"
    )
    options = parser.parse_args()
    if os.geteuid() == 0:
        parser.error("compile servers do not run as root; try: packaging/as-stap-server bench/farm.py")
    try:
        installation = Installation.find(os.environ)
    except Unavailable as exc:
        parser.error(str(exc))
    signal.signal(signal.SIGTERM, end)
    deadline = time.monotonic() + options.limit
    averages = [os.getloadavg()[0]]
    # Not in a busy /tmp: servers watch the way to what results depend on.
    parent = os.environ.get("TMPDIR") or Path.home()
    with tempfile.TemporaryDirectory(prefix="stapsrv-bench.", dir=parent) as name:
        bench = Bench(installation, Path(name), rounds=options.rounds, backend="asyncio")
        with open_contest(bench, Path(name, "farm"), deadline) as contest:
            verdicts = measure(contest, options.rounds)
    averages.append(os.getloadavg()[0])
    print(*plain(verdicts, LOCAL, FARM), "", sep="\n")
    print(
        f"Kernel release {installation.release}, {len(os.sched_getaffinity(0))} cores, load average from "
        f"{min(averages):.1f} to {max(averages):.1f}; medians, least to most in brackets."
    )


if __name__ == "__main__":
    main()
