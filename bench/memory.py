#!/usr/bin/env python3
"""Measure a server's memory while many clients read nothing of a large answer, and say whether it is bounded.

A daemon with a stand-in for stap makes an answer for each client, or one for all (``--equal``). Prints the
resident memory before, and its peak. Exits with 1 if the peak is above what was before, the bound
(``MAX_TOTAL_REQUEST_MEMORY``) and an allowance for what is not counted: results that wait for memory with
their workers, and the blocks under way.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
import time
from pathlib import Path

import anyio
import structlog

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.faulty import FaultyServer, faulty_server

from stapsrv.identity.certificate import load_or_create_identity


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--clients", type=int, default=128, metavar="N", help="that read nothing (default: 128)")
    add("--answer", type=int, default=33, metavar="MB", help="size of each answer (default: 33)")
    add("--bound", type=int, default=1024, metavar="MB", help="memory for all (default: 1024)")
    add("--seconds", type=float, default=60.0, metavar="N", help="how long to look (default: 60)")
    add("--equal", action="store_true", help="all clients ask for the same")
    add("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stapsrv-memory.") as name:
        return measure(Path(name), options)


def measure(place: Path, options: argparse.Namespace) -> int:
    tree = place / "tree"
    (tree / "include" / "config").mkdir(parents=True)
    (tree / "include" / "config" / "kernel.release").write_text("6.1.0-test\n")
    anyio.run(make_identity, place / "identity")
    bounds = ("--max-total-request-memory", f"{options.bound}M", "--send-timeout", "10m", "--warmup", "no")
    with contextlib.ExitStack() as held:
        server = held.enter_context(
            faulty_server(place, tree, place / "identity", *bounds, backend=options.backend)
        )
        before = resident_mb(server, "VmRSS")
        script = f'head -c {options.answer}000000 /dev/urandom >"$answer/stap_x.ko"'
        for number in range(options.clients):
            # Read by the shell alone, so that no two requests are equal.
            told_apart = "" if options.equal else f" # {number}"
            held.enter_context(server.send(script + told_apart))
        until = time.monotonic() + options.seconds
        while time.monotonic() < until:
            print(f"{resident_mb(server, 'VmRSS'):6} MB", end="\r", flush=True)
            time.sleep(0.5)
        peak = resident_mb(server, "VmHWM")
    allowance = 64 + 4 * options.answer
    print(
        f"{before} MB before, {peak} MB at most, with {options.clients} clients of {options.answer} MB each"
    )
    is_bounded = peak <= before + options.bound + allowance
    print(f"within {options.bound} MB" if is_bounded else f"more than {options.bound} MB and {allowance} MB")
    return 0 if is_bounded else 1


def resident_mb(server: FaultyServer, row: str) -> int:
    found = re.search(rf"{row}:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1000


async def make_identity(directory: Path) -> None:
    log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
    await load_or_create_identity(directory, log=log)


if __name__ == "__main__":
    sys.exit(main())
