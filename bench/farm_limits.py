"""What limits a farm: Dask's scheduler and a server's own end of it, with jobs that only sleep.

``farm_limits.py [--jobs N] [--slots N]``, as the user stap-server. Scheduler, nodes and server are processes
of this host, joined by TLS; requests and answers have the sizes of real ones. So what is measured is all but
compiles.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
from distributed import Client, Worker

from stapsrv.farm.ca import create_authority, issue
from stapsrv.farm.security import FarmCredentials, farm_security

NODES = 4
RESOURCE = "6.1.0-56-amd64/x86_64/0123456789abcdef"
JOB_BYTES, ANSWER_BYTES = 10_000, 150_000
SLEEP_S = (0.5, 3.5)
# Jobs that a server gives to the farm beyond those that run.
WAITING = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")


async def compiled(job: bytes, seconds: float) -> bytes:
    """Stand in for a compile."""
    await anyio.sleep(seconds)
    return os.urandom(ANSWER_BYTES) if job else b""


async def run_node(address: str, files: FarmCredentials, slots: int) -> None:
    """Be a node, until the scheduler ends."""
    async with Worker(
        address,
        nthreads=slots,
        resources={RESOURCE: slots},
        security=farm_security(files, address=address),
        memory_limit=0,
        dashboard=False,
        dashboard_address="127.0.0.1:0",
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


async def run_server(address: str, files: FarmCredentials, jobs: int, slots: int) -> list[float]:
    """Have jobs done as a server would; return by how much longer each took than its sleep."""
    delays: list[float] = []
    room = anyio.Semaphore(int(slots * (1 + WAITING)))
    running = anyio.Semaphore(slots)
    source = random.Random(1)
    async with Client(address, security=farm_security(files, address=address), asynchronous=True) as client:

        async def one(number: int) -> None:
            seconds = source.uniform(*SLEEP_S)
            async with running:
                began = time.monotonic()
                job = os.urandom(JOB_BYTES)
                future = client.submit(
                    compiled, job, seconds, key=f"job-{number}", pure=False, resources={RESOURCE: 1}
                )
                answer = await future
                assert len(answer) == ANSWER_BYTES
                delays.append(time.monotonic() - began - seconds)
                future.release()
            room.release()

        async with anyio.create_task_group() as tasks:
            for number in range(jobs):
                await room.acquire()
                tasks.start_soon(one, number)
    return delays


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=200)
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
        began, scheduler_s, own_s = time.monotonic(), cpu_s(scheduler), time.process_time()
        delays = sorted(anyio.run(run_server, address, files, given.jobs, given.slots))
        took_s = time.monotonic() - began
        scheduler_ms = (cpu_s(scheduler) - scheduler_s) / given.jobs * 1000
        own_ms = (time.process_time() - own_s) / given.jobs * 1000
        mean_s = statistics.mean(SLEEP_S)
        ms = [delay * 1000 for delay in delays]
        rows = {
            "jobs": f"{given.jobs}, on {given.slots} slots, {mean_s:g} s each",
            "jobs a second": f"{given.jobs / took_s:.0f} of {given.slots / mean_s:.0f} that the slots allow",
            "added to each": f"median {statistics.median(ms):.0f} ms, 99 of 100 "
            f"{ms[int(len(ms) * 0.99)]:.0f} ms, most {ms[-1]:.0f} ms",
            "scheduler": f"{scheduler_ms:.1f} ms of processor a job, {resident_mb(scheduler):.0f} MB",
            "server's end of it": f"{own_ms:.1f} ms of processor a job, {resident_mb(os.getpid()):.0f} MB",
        }
        for name, text in rows.items():
            print(f"{name:20} {text}")


if __name__ == "__main__":
    main()
