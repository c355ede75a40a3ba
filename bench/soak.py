#!/usr/bin/env python3
"""Soak a server: clients of all kinds at once, for minutes; then see that everything is as it was before.

A daemon with a stand-in for stap, which does what each request says, meets good clients, slow and silent
ones, a flood, disconnects at every byte, rubbish, and somebody who kills processes. Where SystemTap and
kernel headers are installed, the real client has the real stap compile beside that, on a second daemon.

Exits with 1, and says what differs, when a good request was answered wrongly, or when memory, descriptors,
processes, threads or directories did not come back.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import structlog

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.faulty import faulty_server
from kit.footprint import Footprint, wait_back
from kit.real import Installation, Server, Stap, Unavailable, serving
from kit.soak import OPTIONS, Report, soak

from stapsrv.identity.certificate import load_or_create_identity

WARM_UP_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=3.0, metavar="N", help="how long (default: 3)")
    add("--backend", choices=("asyncio", "trio"), default="asyncio")
    add("--seed", type=int, default=int(time.time()), help="of what is left to chance")
    add("--memory", type=int, default=30_000, metavar="kB", help="by how much it may grow (default: 30000)")
    add("--stand-in-only", action="store_true", help="no real compiles")
    options = parser.parse_args()
    print(f"{options.minutes:g} minutes on {options.backend}, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="stapsrv-soak.") as name:
        report = run(Path(name), options)
    for kind, count in sorted(report.done.items()):
        print(f"{kind:24}{count:10}")
    for fault in report.faults:
        print(f"not as it should be: {fault}")
    print("everything is as it was before" if not report.faults else f"{len(report.faults)} faults")
    return 1 if report.faults else 0


def run(place: Path, options: argparse.Namespace) -> Report:
    tree = place / "tree"
    (tree / "include" / "config").mkdir(parents=True)
    (tree / "include" / "config" / "kernel.release").write_text("6.1.0-test\n")
    anyio.run(make_identity, place / "identity")
    with contextlib.ExitStack() as cleanup:
        compiles = None if options.stand_in_only else cleanup.enter_context(real_compiles(place))
        server = cleanup.enter_context(
            faulty_server(place, tree, place / "identity", *OPTIONS, backend=options.backend)
        )
        report = soak(
            server,
            seconds=60 * options.minutes,
            warm_up_s=WARM_UP_S,
            seed=options.seed,
            memory_kb=options.memory,
            others=() if compiles is None else (compiles.compile,),
        )
        if compiles is not None:
            report.done["real compiles"] = compiles.done
            report.faults.extend(compiles.faults())
    return report


async def make_identity(directory: Path) -> None:
    log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
    await load_or_create_identity(directory, log=log)


class RealCompiles:
    """The real client, again and again, with a script that nobody compiled before."""

    def __init__(self, stap: Stap, server: Server) -> None:
        self.done = 0
        self._stap = stap
        self._server = server
        self._wrong: list[str] = []
        self._before = self._footprint()

    def compile(self) -> None:
        script = f"probe begin {{ println({self.done}) exit() }}"
        ran = self._stap.via(self._server.port, "-p4", "-e", script)
        if ran.status != 0:
            self._wrong.append(f"a real compile failed: {ran.stderr}")
        self.done += 1

    def faults(self) -> list[str]:
        return self._wrong + wait_back(lambda: self._footprint().differences(self._before, threads=4))

    def _footprint(self) -> Footprint:
        return Footprint.of(self._server.pid, self._server.temporary)


@contextlib.contextmanager
def real_compiles(place: Path) -> Iterator[RealCompiles | None]:
    try:
        installation = Installation.find(os.environ)
    except Unavailable as exc:
        print(f"no real compiles: {exc}", flush=True)
        yield None
        return
    (place / "real").mkdir()
    stap = Stap(installation=installation, directory=place / "systemtap", place=place / "real")
    print(f"warming the cache for {installation.release}", flush=True)
    warmed = stap.local("-p4", "-e", "probe begin { exit() }")
    if warmed.status != 0:
        sys.exit(f"stap does not compile:\n{warmed.stderr}")
    with serving(stap) as server:
        yield RealCompiles(stap, server)


if __name__ == "__main__":
    sys.exit(main())
