#!/usr/bin/env python3
"""Measure what checks of a collection of scripts are worth, beside the same compiles by stap in a loop.

The scripts are SystemTap's examples that need no debugging information, made new by a number for as often as
they are wanted. A supervisor with a collection of its own serves the two newest kernel releases; its user has
compiled nothing before, as after the installation of a kernel's headers. All figures that count are ratios of
one run. All that is made is in one temporary directory, and gone at the end; nothing leaves this host.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs
from compare import LOCAL, OURS, check, end, progress
from loads import Verdict, median, spread, timed
from performance import plain

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.real import PATIENCE_S, FollowedLog, Installation, Stap, Unavailable

from stapsrv.scripts.directory import read_collection
from stapsrv.scripts.script import Script

_EXAMPLES = "/usr/share/systemtap/examples"
_COMMAND = Path(sys.executable).with_name("stap-server")
_DAEMON = Path(sys.executable).with_name("stap-serverd")
_CHECK_S = 1800.0
_FIRST_S = 1200.0
_FIRST = 12
"""Scripts that clients ask for."""
_PARTS = 4
"""The server's check and the loop take turns, so that a busy machine slows both."""
_BLOCKS = 3
_REACHED_FIRST, _REACHED_TOTAL, _REACHED_WAIT = 1.5, 0.8, 1.3


@attrs.define(kw_only=True)
class Site:
    """A supervisor with a collection, and a user beside it whose stap compiles by itself.

    Attributes:
        served: the supervisor's user, and that of its clients.
        alone: the other user.
        examples: what scripts are made of.
        place: where all files are.
        numbers: those that make scripts new.
    """

    served: Stap
    alone: Stap
    examples: Sequence[Script]
    place: Path
    numbers: Iterator[int] = attrs.field(factory=partial(itertools.count, 1))

    @property
    def releases(self) -> tuple[str, ...]:
        return self.served.installation.releases

    @property
    def collection(self) -> Path:
        return self.place / "collection"

    @property
    def config(self) -> Path:
        return self.place / "global.conf"

    def renew_collection(self, count: int) -> list[Script]:
        """Have new scripts in place of those in the collection."""
        shutil.rmtree(self.collection, ignore_errors=True)
        self.collection.mkdir()
        for example in itertools.islice(itertools.cycle(self.examples), count):
            number = next(self.numbers)
            file = self.collection / f"{number}_{Path(example.name).name}"
            file.write_bytes(example.source + f"\nprobe timer.s({1000 + number}) {{ exit() }}\n".encode())
            words = {"options": ["-p4", *example.options], "arguments": example.arguments}
            sidecar = "".join(f"{name} = {json.dumps(list(value))}\n" for name, value in words.items())
            file.with_suffix(".toml").write_text(sidecar)
        return list(read_collection(str(self.collection)).scripts)

    @contextlib.contextmanager
    def serving(self, *settings: str) -> Iterator[tuple[int, FollowedLog]]:
        """Run the supervisor; yields its port and its log, which begins with this run."""
        log = self.place / "log"
        log.write_text("")
        lines = [f"CONFIG_PATH={self.place}/conf.d", f"STAT_PATH={self.place}/stat", f"LOG_FILE={log}"]
        lines += ["MDNS=no", f"SCRIPTS={self.collection}", *settings]
        self.config.write_text("".join(f"{line}\n" for line in lines))
        server = [f"RELEASE+={release}" for release in self.releases]
        server += [f"RUNTIME={self.served.installation.runtime}", "NICKNAME=bench"]
        (self.place / "conf.d").mkdir(exist_ok=True)
        (self.place / "conf.d" / "bench.conf").write_text("".join(f"{line}\n" for line in server))
        environ = self.served.environ(STAPSRV_WARMUP="yes")
        with (
            subprocess.Popen(
                [str(_DAEMON), "-c", str(self.config)],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as process,
            FollowedLog.open(log, process.pid) as followed,
        ):
            try:
                port = int(followed.wait(r"Using network address \S+:(\d+)$")[1])
                yield port, followed
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=PATIENCE_S)

    def begin_check(self) -> subprocess.Popen[str]:
        """Start a check of all scripts for all releases."""
        return subprocess.Popen(
            [str(_COMMAND), "scripts", "check", "-c", str(self.config), "--json"],
            env=self.served.environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def check(self, wanted: int) -> None:
        """Check all scripts, which have to compile."""
        process = self.begin_check()
        stdout, stderr = process.communicate(timeout=_CHECK_S)
        if process.returncode:
            bad = [row for row in json.loads(stdout or "{}").get("results", []) if row["verdict"] == "fails"]
            sys.exit(f"the check has failed: {stderr}{bad[:3]}")
        found = json.loads(stdout)["results"]
        if len(found) != wanted or any(row["cached"] for row in found):
            sys.exit(f"the check has {len(found)} results in place of {wanted}, or knew some before")

    def compile_alone(self, scripts: Sequence[Script]) -> None:
        """Compile scripts for all releases by stap, one after the other."""
        for release in self.releases:
            installation = attrs.evolve(self.alone.installation, releases=(release,))
            stap = attrs.evolve(self.alone, installation=installation)
            for script in scripts:
                check(LOCAL, stap.local(*_words(script)))

    def ask(self, port: int, script: Script) -> None:
        """Ask for a script by the real client."""
        check(OURS, self.served.via(port, *_words(script)))

    def ask_new(self, port: int) -> float:
        """Ask for a short script that is new; returns how long it takes (seconds)."""
        text = f"probe timer.s({next(self.numbers)}) {{ exit() }}"
        return timed(lambda: check(OURS, self.served.via(port, "-p4", "-e", text)))


def _words(script: Script) -> list[str]:
    arguments = ["--", *script.arguments] if script.arguments else []
    return [*script.options, script.path, *arguments]


def find_examples(stap: Stap, count: int) -> list[Script]:
    """Return the first examples that can be translated for all releases, as they are asked for."""
    found: list[Script] = []
    for script in read_collection(_EXAMPLES).scripts:
        if len(found) == count:
            break
        # What stap makes for a user's program is not kept: it looks at the program each time.
        if script.fault is not None or script.included or b"process(" in script.source:
            continue
        for release in stap.installation.releases:
            installation = attrs.evolve(stap.installation, releases=(release,))
            ran = attrs.evolve(stap, installation=installation).local(*_words(script), "-p2")
            if ran.status:
                break
        else:
            found.append(script)
    return found


def first_requests(site: Site) -> Verdict:
    """Ask for what was checked by itself, for a kernel that nobody has compiled for before."""
    scripts = site.renew_collection(_FIRST)
    with site.serving() as (port, log):
        for release in site.releases:
            log.wait(rf"Scripts for {re.escape(release)}: {_FIRST} ", timeout_s=_FIRST_S)
        first, known = [], []
        for script in scripts:
            for times in (first, known):
                times.append(timed(partial(site.ask, port, script)))
        log.wait(r"answered rc=0, hit", count=2 * _FIRST)
    ratio = median(first) / median(known)
    return Verdict(
        f"first request for a checked script, beside the second one ({_FIRST}x)",
        spread(known),
        spread(first),
        f"{ratio:.2f} times as long",
        f"at most {_REACHED_FIRST}",
        ratio <= _REACHED_FIRST,
    )


def total(site: Site, count: int) -> Verdict:
    """Compile new scripts for all releases by a check, and by stap in a loop."""
    loop = checked = 0.0
    for part in range(_PARTS):
        progress(f"  part {part + 1} of {_PARTS}")
        scripts = site.renew_collection(count // _PARTS)
        turns = deque(("loop", "check"))
        turns.rotate(part)
        for turn in turns:
            if turn == "loop":
                loop += timed(partial(site.compile_alone, scripts))
            else:
                checked += timed(partial(site.check, len(scripts) * len(site.releases)))
    ratio = checked / loop
    return Verdict(
        f"{count // _PARTS * _PARTS} scripts for {len(site.releases)} releases, beside stap in a loop",
        f"{loop:.0f} s",
        f"{checked:.0f} s",
        f"{ratio:.2f} times as long",
        f"at most {_REACHED_TOTAL}",
        ratio <= _REACHED_TOTAL,
    )


def beside_check(site: Site, port: int, count: int) -> Verdict:
    """Ask for new scripts while a check runs, and while none does."""
    quiet: list[float] = []
    busy: list[float] = []
    for _ in range(_BLOCKS):
        site.renew_collection(count)
        quiet += [site.ask_new(port) for _ in range(_FIRST // 2)]
        process = site.begin_check()
        try:
            # Its first compiles have begun by then.
            site.ask_new(port)
            busy += [site.ask_new(port) for _ in range(_FIRST // 2)]
            if process.poll() is not None:
                sys.exit(f"the check has ended meanwhile: {process.communicate()[1]}")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE_S)
    ratio = median(busy) / median(quiet)
    return Verdict(
        f"a client's new script while a check runs, beside none ({len(busy)}x)",
        spread(quiet),
        spread(busy),
        f"{ratio:.2f} times as long",
        f"at most {_REACHED_WAIT}",
        ratio <= _REACHED_WAIT,
    )


def measure(site: Site, count: int) -> list[Verdict]:
    """Measure all; return the rows."""
    progress("measuring: first requests after a kernel's first check")
    verdicts = [first_requests(site)]
    for release in site.releases:
        progress(f"compiling once for {release} by stap alone")
        installation = attrs.evolve(site.alone.installation, releases=(release,))
        stap = attrs.evolve(site.alone, installation=installation)
        check(LOCAL, stap.local("-p4", "-e", "probe begin { exit() }"))
    with site.serving("WARMUP=no") as (port, _log):
        progress("measuring: a whole check")
        verdicts.append(total(site, count))
        progress("measuring: clients beside a check")
        verdicts.append(beside_check(site, port, count))
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--scripts", type=int, default=100, metavar="N", help="of the check that is timed")
    options = parser.parse_args()
    if os.geteuid() == 0:
        parser.error("compile servers do not run as root; try: packaging/as-stap-server bench/scripts.py")
    try:
        installation = Installation.find(os.environ)
    except Unavailable as exc:
        parser.error(str(exc))
    if len(installation.releases) < 2:
        parser.error("kernel headers of two releases are wanted; run packaging/setup")
    installation = attrs.evolve(installation, releases=installation.releases[:2])
    signal.signal(signal.SIGTERM, end)
    averages = [os.getloadavg()[0]]
    # Not in a busy /tmp: servers watch the way to what results depend on.
    parent = os.environ.get("TMPDIR") or Path.home()
    with tempfile.TemporaryDirectory(prefix="stapsrv-bench.", dir=parent) as name:
        place = Path(name)
        users = []
        for user in ("served", "alone"):
            (place / user).mkdir()
            own = Stap(installation=installation, directory=place / user / "systemtap", place=place / user)
            users.append(own)
        progress("looking for examples that need no debugging information")
        examples = find_examples(users[1], options.scripts)
        site = Site(served=users[0], alone=users[1], examples=examples, place=place)
        verdicts = measure(site, options.scripts)
    averages.append(os.getloadavg()[0])
    print(*plain(verdicts, "beside", OURS), "", sep="\n")
    print(
        f"Kernel releases {', '.join(installation.releases)}, {len(os.sched_getaffinity(0))} cores, load "
        f"average from {min(averages):.1f} to {max(averages):.1f}; {len(examples)} examples; medians, least "
        "to most in brackets."
    )


if __name__ == "__main__":
    main()
