#!/usr/bin/env python3
"""Compile scripts by make and by plans, in directories of the same name, and compare what comes of it.

For each script stap runs twice: the module has to be the same, byte for byte, and so have messages and exit
status. A script whose source begins in a way that is not prepared runs once more when the server's own script
for that has been built. Without arguments all example scripts that are installed with SystemTap are compiled,
in guru mode where they have embedded C. What stap has found out in $SYSTEMTAP_DIR/cache is used. All that is
made is in one temporary directory, and gone at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import attrs

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.real import Installation, Unavailable

from stapsrv.compile.engine.prepared.store import (
    ANOTHER_MAKEFILE,
    FOLLOW,
    RECORD,
    PlanStore,
    lacks_plan,
    read_report,
)
from stapsrv.compile.engine.prepared.variants import plan_scripts

EXAMPLES = Path("/usr/share/systemtap/examples")
_TIMEOUT_S = 600.0


@attrs.frozen
class Built:
    status: int
    stderr: str
    module: bytes | None
    how: str | None
    wall_s: float
    cpu_s: float
    sources: tuple[bytes, ...] = ()


@attrs.frozen
class Bench:
    installation: Installation
    place: Path

    @property
    def store(self) -> PlanStore:
        return PlanStore(self.place / "toolchains" / "own" / "prepared")

    def compile(self, arguments: list[str], stand_in: Path | None, cwd: Path) -> Built:
        """Run stap in a directory that has the same name each time."""
        directory, systemtap = self.place / "response", self.place / "systemtap"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for left in systemtap.glob("cache/*/stap_*"):
            left.unlink()
        (systemtap / "builds").unlink(missing_ok=True)
        path = "/usr/bin:/bin" if stand_in is None else f"{stand_in}:/usr/bin:/bin"
        own = ["stap", "-r", self.installation.release, "-R", str(self.installation.runtime)]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        ran = subprocess.run(
            [*own, f"--tmpdir={directory}", "-p4", *arguments],
            cwd=cwd,
            env={"PATH": path, "SYSTEMTAP_DIR": str(systemtap), "LC_ALL": "C", "HOME": str(self.place)},
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
        wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        module = next((path.read_bytes() for path in directory.glob("*.ko")), None)
        sources = tuple(path.read_bytes() for path in directory.glob("*.[ch]"))
        return Built(ran.returncode, ran.stderr, module, read_report(systemtap), wall_s, cpu_s, sources)

    def plain(self, arguments: list[str], cwd: Path) -> Built:
        return self.compile(arguments, None, cwd)

    def prepared(self, arguments: list[str], cwd: Path) -> Built:
        self.store.check()
        return self.compile(arguments, self.store.stand_in(FOLLOW, self.store.plans), cwd)

    def prepare(self, options: list[str], sources: tuple[bytes, ...], how: str | None = None) -> None:
        """Make the plan, and the starts, that builds like this one lack."""
        for script in plan_scripts(sources, another_makefile=how == ANOTHER_MAKEFILE):
            self._prepare(options, script.decode())

    def _prepare(self, options: list[str], script: str) -> None:
        left = self.place / "systemtap" / "plan"
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir()
        made = self.compile([*options, "-e", script], self.store.stand_in(RECORD, left), self.place)
        if not self.store.keep(left):
            print(f"  no plan: {made.how}")


def options_of(script: Path) -> list[str]:
    return ["-g"] if re.search(r"%\{", script.read_text(errors="replace")) else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scripts", nargs="*", type=Path, help="in place of SystemTap's examples")
    parser.add_argument("-r", dest="release", help="in place of the newest release that is installed")
    given = parser.parse_args()
    try:
        installation = Installation.find(os.environ)
    except Unavailable as exc:
        parser.error(str(exc))
    if given.release is not None:
        installation = attrs.evolve(installation, releases=(given.release,))
    scripts = given.scripts or sorted(EXAMPLES.rglob("*.stp"))
    words: Counter[str] = Counter()
    plain_s = prepared_s = plain_cpu_s = prepared_cpu_s = 0.0
    with tempfile.TemporaryDirectory(prefix="stapsrv-identical.") as place:
        bench = Bench(installation, Path(place))
        begin = Path(os.environ.get("SYSTEMTAP_DIR", Path.home() / ".systemtap")) / "cache"
        cache = bench.place / "systemtap" / "cache"
        if begin.is_dir():
            shutil.copytree(begin, cache)
        else:
            cache.mkdir(parents=True)
        for options in ([], ["-g"]):
            # stap finds out the kernel's features for each of its modes.
            bench.plain([*options, "-e", "probe begin { exit() }"], bench.place)
            bench.prepare(options, ())
        for script in scripts:
            arguments = [*options_of(script), str(script.resolve())]
            try:
                # Most examples need debugging information, and end before they come to be built.
                quick = bench.compile(["-p3", *arguments], None, script.parent)
                if quick.status != 0:
                    words["ended before"] += 1
                    continue
                plain = bench.plain(arguments, script.parent)
                ours = bench.prepared(arguments, script.parent)
                if lacks_plan(ours.how) or ours.how == "plain: features unknown":
                    bench.prepare(options_of(script), plain.sources, ours.how)
                    ours = bench.prepared(arguments, script.parent)
            except subprocess.TimeoutExpired:
                words["took too long"] += 1
                continue
            is_same = (plain.status, plain.stderr, plain.module) == (ours.status, ours.stderr, ours.module)
            words["same" if is_same else "OTHER"] += 1
            words[str(ours.how)] += 1
            if ours.how == "prepared":
                plain_s, prepared_s = plain_s + plain.wall_s, prepared_s + ours.wall_s
                plain_cpu_s, prepared_cpu_s = plain_cpu_s + plain.cpu_s, prepared_cpu_s + ours.cpu_s
            print(
                f"{'same ' if is_same else 'OTHER'} {script.stem:32} {ours.how}; "
                f"{plain.wall_s:.2f} -> {ours.wall_s:.2f} s, CPU {plain.cpu_s:.2f} -> {ours.cpu_s:.2f} s",
                flush=True,
            )
    print(", ".join(f"{count} {word}" for word, count in words.most_common()))
    with contextlib.suppress(ZeroDivisionError):
        print(f"prepared over plain: wall {prepared_s / plain_s:.2f}, CPU {prepared_cpu_s / plain_cpu_s:.2f}")
    return 1 if words["OTHER"] else 0


if __name__ == "__main__":
    sys.exit(main())
