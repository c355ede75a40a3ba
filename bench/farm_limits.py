#!/usr/bin/env python3
"""Measure what limits a farm, and how clients share it, with jobs that only sleep.

Scheduler, nodes and server are processes of this host, joined by TLS; requests and answers have the sizes of
real ones. So what is measured is all but compiles. The server has its queue in front of the farm, and eight
clients, of which some want all the farm at any time and others a slot now and then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import anyio
import attrs
import structlog
from distributed import Worker

from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.pool import WorkerPool
from stapsrv.farm.ca import create_authority, issue
from stapsrv.farm.client import Assignment, FarmClient
from stapsrv.farm.node import FarmNode
from stapsrv.farm.offer import Offer
from stapsrv.farm.result import NodeResult
from stapsrv.farm.security import FarmCredentials, farm_security
from stapsrv.farm.task import NodePlugin

NODES = 4
OFFER = Offer("6.1.0-56-amd64", "x86_64", "0123456789abcdef" * 4)
JOB_BYTES, ANSWER_BYTES = 10_000, 150_000
SLEEP_S = (0.5, 3.5)
# How many requests each client has at any time, for each slot of the farm.
DEMANDS = (2.0, 1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.005)
NO_RESULT = CompileResult(status=0, stdout=b"", stderr=b"", files=())
_HEAD = struct.Struct(">d")
_TICKS = os.sysconf("SC_CLK_TCK")


class SleepingNode:
    """Stands in for a node's compiles: a job says how long to sleep."""

    async def compile(self, message: bytes) -> bytes:
        await anyio.sleep(_HEAD.unpack_from(message)[0])
        return os.urandom(ANSWER_BYTES)

    def release(self, name: str) -> None:
        """Forget a job: nothing is kept of it."""

    def cancel_all(self) -> None:
        """End all jobs: they end with the process."""


async def run_node(address: str, files: FarmCredentials, slots: int) -> None:
    """Be a node, until the scheduler ends."""
    async with Worker(
        address,
        nthreads=slots,
        resources={OFFER.resource: slots},
        security=farm_security(files, address=address),
        memory_limit=0,
        dashboard=False,
        dashboard_address="127.0.0.1:0",
        plugins=(NodePlugin(cast(FarmNode, SleepingNode())),),
    ) as worker:
        print("ready", flush=True)
        await worker.finished()


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mb(pid: int) -> float:
    """Return the largest memory of a process so far."""
    (line,) = [
        each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 1024


@contextlib.contextmanager
def started(words: list[str], mark: str) -> Iterator[int]:
    """Start a program, wait until it says ``mark``, and end it afterwards; give its process id."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if mark in line:
                    break
            else:
                raise SystemExit(f"{words[:4]} did not start")
            yield process.pid
        finally:
            process.terminate()


@attrs.define
class Demand:
    """A client that always has so many requests at once."""

    at_once: int
    waits_s: list[float] = attrs.field(factory=list)  # for a permission to compile
    delays_s: list[float] = attrs.field(factory=list)  # of each job on the farm, beyond its sleep
    held_s: float = 0.0  # time in which it has had slots, in all


async def run_server(
    address: str, files: FarmCredentials, jobs: int, slots: int, limit_s: float
) -> tuple[list[Demand], float]:
    """Have jobs done as a server would, for unequal clients; return what they saw, and how long (s)."""
    demands = [Demand(max(1, int(slots * share))) for share in DEMANDS]
    pool = WorkerPool(slots, queue_length=None)
    source = random.Random(1)
    left = iter(range(jobs))
    log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
    farm = FarmClient(address, files, log)
    began_all = 0.0

    async def ask(demand: Demand) -> None:
        for _ in left:
            if time.monotonic() - began_all > limit_s:
                return
            seconds = source.uniform(*SLEEP_S)
            asked = time.monotonic()
            async with pool.worker(id(demand)):
                began = time.monotonic()
                demand.waits_s.append(began - asked)
                await farm.compile(assignment(seconds))
            took_s = time.monotonic() - began
            demand.held_s += took_s
            demand.delays_s.append(took_s - seconds)

    async with anyio.create_task_group() as serving:
        ready = anyio.Event()
        farm.on_change = lambda: ready.set() if farm.nodes.slots == slots else None
        serving.start_soon(farm.run)
        await ready.wait()
        began_all = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for demand in demands:
                for _ in range(demand.at_once):
                    tasks.start_soon(ask, demand)
        took_all_s = time.monotonic() - began_all
        serving.cancel_scope.cancel()
    return demands, took_all_s


def assignment(seconds: float) -> Assignment:
    """Return a job that sleeps."""
    job = _HEAD.pack(seconds) + os.urandom(JOB_BYTES)
    return Assignment(
        release=OFFER.release,
        arch=OFFER.arch,
        identity=None,
        wait_s=60.0,
        background=False,
        encode=lambda _name, _identity: job,
        decode=decoded,
    )


def decoded(message: object) -> NodeResult:
    """Take an answer without reading its content."""
    assert isinstance(message, bytes)
    assert len(message) == ANSWER_BYTES
    return NodeResult(result=NO_RESULT, node="node")


def fair_shares(demands: Sequence[int], slots: int) -> list[float]:
    """Return how many slots each client gets where nobody who wants more has less than another."""
    shares, left = [0.0] * len(demands), float(slots)
    waiting = sorted(range(len(demands)), key=demands.__getitem__)
    while waiting:
        least = waiting.pop(0)
        shares[least] = min(demands[least], left / (len(waiting) + 1))
        left -= shares[least]
    return shares


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10_000, metavar="N", help="in all (default: 10000)")
    parser.add_argument("--slots", type=int, default=200, metavar="N", help="in all (default: 200)")
    parser.add_argument(
        "--limit", type=float, default=180.0, metavar="S", help="begin no job after this time (default: 180)"
    )
    parser.add_argument("--node", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.node:
        address, *files, slots = given.node
        anyio.run(run_node, address, FarmCredentials(*map(Path, files)), int(slots))
        return
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as held:
        directory = Path(place)
        create_authority(directory)
        member = issue(directory, "member")
        files = FarmCredentials(directory / "ca.pem", member.certificate_file, member.key_file)
        names = [str(files.ca), str(files.cert), str(files.key)]
        address = "tls://127.0.0.1:28786"
        options = [word for pair in zip(("--ca", "--cert", "--key"), names, strict=True) for word in pair]
        stap_farm = [sys.executable, "-m", "stapsrv.farm.cli", "scheduler", "--listen", address, *options]
        scheduler = held.enter_context(started(stap_farm, "scheduling at"))
        for _ in range(NODES):
            node = [sys.executable, __file__, "--node", address, *names, str(given.slots // NODES)]
            held.enter_context(started(node, "ready"))
        scheduler_s, own_s = cpu_s(scheduler), time.process_time()
        demands, took_s = anyio.run(run_server, address, files, given.jobs, given.slots, given.limit)
        done = sum(len(demand.delays_s) for demand in demands)
        scheduler_ms = (cpu_s(scheduler) - scheduler_s) / done * 1000
        own_ms = (time.process_time() - own_s) / done * 1000
        mean_s = statistics.mean(SLEEP_S)
        ms = sorted(delay * 1000 for demand in demands for delay in demand.delays_s)
        rows = {
            "jobs": f"{done}, on {given.slots} slots, {mean_s:g} s each",
            "jobs a second": f"{done / took_s:.0f} of {given.slots / mean_s:.0f} that the slots allow",
            "added to each": f"median {statistics.median(ms):.0f} ms, 99 of 100 "
            f"{ms[int(len(ms) * 0.99)]:.0f} ms, most {ms[-1]:.0f} ms",
            "scheduler": f"{scheduler_ms:.1f} ms of processor a job, {resident_mb(scheduler):.0f} MB",
            "server's end of it": f"{own_ms:.1f} ms of processor a job, {resident_mb(os.getpid()):.0f} MB",
            "load average": f"{os.getloadavg()[0]:.1f}",
        }
        for name, text in rows.items():
            print(f"{name:20} {text}")
        print("\nrequests at once  jobs done  slots had  fair share  waited for one: median      most")
        shares = fair_shares([demand.at_once for demand in demands], given.slots)
        for demand, share in zip(demands, shares, strict=True):
            waits = f"{statistics.median(demand.waits_s):20.2f} s{max(demand.waits_s):8.2f} s"
            had = demand.held_s / took_s
            print(f"{demand.at_once:16}{len(demand.delays_s):11}{had:11.1f}{share:12.1f}{waits}")


if __name__ == "__main__":
    main()
