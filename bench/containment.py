"""Time what containment costs a request: each sandbox that works on this host beside none.

A request takes the way that it takes in a server: directories, command line, the run, the answer's files; but
in this process, without a network. Two programs are timed: stap up to pass 2, its quickest
answer, and a program that does nothing, all of whose time is overhead. The sandboxes take turns, so
that other load on the machine slows all of them alike.

Run as a plain user, like the others: ``packaging/as-stap-server python bench/containment.py``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.real import Installation, Unavailable

from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.engine.local import LocalEngine
from stapsrv.compile.engine.stap import StapProgram, find_stap
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import resolve_release
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.detect import OFF, find_sandbox
from stapsrv.sandbox.sandbox import Sandbox

SCRIPT = b'probe begin { println("contained") exit() }'
DEADLINE_S = 120.0


async def find_sandboxes(stap: StapProgram, environ: Mapping[str, str], place: Path) -> dict[str, Sandbox]:
    """Return each sandbox that works here by its name, with ``off``."""
    found = {}
    for name in (OFF, *(backend.value for backend in Backend)):
        try:
            found[name] = await find_sandbox(name, stap.path, environ, home=place, workspace=place)
        except ConfigError as exc:
            print(f"{name}: not here: {exc.problem}")
    return found


async def measure(rounds: int, installation: Installation, place: Path) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each request, by program and sandbox."""
    environ = {"PATH": os.environ["PATH"], "SYSTEMTAP_DIR": str(place / "systemtap"), "LANG": "C.UTF-8"}
    stap = await find_stap(environ)
    nothing = StapProgram(Path("/usr/bin/true"), stap.version)
    sandboxes = await find_sandboxes(stap, environ, place)
    release = resolve_release(installation.release, arch="x86_64")
    request = CompileRequest(release=release.name, arch=release.arch, arguments=(b"-p2", b"-e", SCRIPT))
    job = CompileJob(
        request=request,
        release=release,
        settings=ServerSettings(runtime=str(installation.runtime)),
        deadline_s=DEADLINE_S,
    )
    workspace = Workspace.open(place)
    taken: dict[str, dict[str, list[float]]] = {}
    try:
        engines = {
            (program.path.name, name): LocalEngine(program, sandbox, workspace, environ=environ, home=place)
            for program in (stap, nothing)
            for name, sandbox in sandboxes.items()
        }
        for number in range(rounds + 1):
            for (program, name), engine in engines.items():
                began = time.perf_counter()
                result = await engine.run(job)
                seconds = time.perf_counter() - began
                if result.status != 0:
                    raise SystemExit(f"{program} in {name}: {result.stderr.decode()}")
                if number:  # the first fills caches
                    taken.setdefault(program, {}).setdefault(name, []).append(seconds)
    finally:
        workspace.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="requests of each kind (default: 20)")
    rounds = parser.parse_args().rounds
    try:
        installation = Installation.find(os.environ)
    except Unavailable as exc:
        raise SystemExit(str(exc)) from exc
    with tempfile.TemporaryDirectory(prefix="stapsrv-bench.") as directory:
        taken = anyio.run(measure, rounds, installation, Path(directory))
    print(f"{'':14}{'':12}{'median ms':>10}{'least':>8}{'most':>8}{'more ms':>9}{'ratio':>7}")
    for program, kinds in taken.items():
        base = statistics.median(kinds[OFF])
        for name, seconds in kinds.items():
            median = statistics.median(seconds)
            numbers = (median, min(seconds), max(seconds), median - base)
            cells = "".join(
                f"{1000 * value:{width}.1f}" for value, width in zip(numbers, (10, 8, 8, 9), strict=True)
            )
            print(f"{program:14}{name:12}{cells}{median / base:7.2f}")


if __name__ == "__main__":
    main()
