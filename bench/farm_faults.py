#!/usr/bin/env python3
"""Break a farm again and again: whatever dies, every request has to get its one right answer.

A server, a scheduler and three nodes are processes of this host, joined by TLS; their stap is a stand-in
that sleeps, or with --real the real one. Requests run while something is killed, stopped for a while, cut off
or restarted, as a seed has it. After each fault every answer is looked at (a dead server's jobs have to leave
the farm instead), no process of theirs may be left, and as many jobs as the farm has slots have to run at the
same time again.

As root, the nodes are in network namespaces of their own, and links are cut; else nodes are only stopped.
Exits with 1, and says what differs, when something is not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import attrs
from compare import end

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.client import RELEASE, Answer
from kit.farm import Farm, Member, processes_with
from kit.faulty import ask
from kit.footprint import wait_back
from kit.real import Installation, Unavailable
from kit.stap import make_stap

from stapsrv.farm.ca import create_authority, issue

NODES, SLOTS = 3, 2
ANSWER_S = 180.0
USER = "stap-server"
# A node's proof is a script of its own; all others are the shell's.
STAND_IN = """
case "$script" in
probe*) echo module >"$answer/stap_x.ko";;
*) eval "$script";;
esac
"""
_LATEST_S = 45.0
_NONE = "no answer"
_HOLD = "echo; exec sleep infinity"
MAKES = 'echo >"$answer/stap_x.ko"'


@attrs.define(kw_only=True)
class Site:
    """A whole farm, and the server that its clients know."""

    farm: Farm
    release: str
    chance: random.Random
    links: Sequence[Sequence[str]]  # for each node, what a command begins with that runs on its host
    scheduler: Member
    nodes: list[Member] = attrs.field(factory=list)
    server: Member
    port: int = 0
    numbers: Iterator[int] = attrs.field(factory=partial(itertools.count, 1))

    @classmethod
    def of(cls, farm: Farm, release: str, chance: random.Random, links: Sequence[Sequence[str]]) -> Site:
        site = cls(
            farm=farm,
            release=release,
            chance=chance,
            links=links,
            scheduler=farm.start_scheduler(),
            server=_server(farm, release, chance),
        )
        site.nodes = [site.begin_node(number) for number in range(NODES)]
        for node in site.nodes:
            node.log.wait("is offered")
        site.find_port()
        return site

    def begin_node(self, number: int) -> Member:
        return self.farm.begin_worker("--name", f"n{number}", inside=self.links[number])

    def restart_node(self, number: int) -> None:
        """Start a node anew, and wait until it compiles."""
        self.nodes[number] = self.begin_node(number)
        self.nodes[number].log.wait("is offered")

    def restart_server(self) -> None:
        self.server = _server(self.farm, self.release, self.chance)
        self.find_port()

    def find_port(self) -> None:
        self.port = int(self.server.log.wait(r"Using network address \S+:(\d+)$")[1])
        self.server.log.wait("Farm: connected ")

    @property
    def mark(self) -> str:
        """What is on the command lines of all processes of all jobs, and of no others."""
        return f"{os.getpid():07}"

    def request(self, seconds: float) -> str:
        """Compile something new, a stand-in for so long; return what is wrong with the answer."""
        number = next(self.numbers)
        if self.release == RELEASE:
            script = f"sleep {seconds:.2f}{self.mark}; echo said {number:06}; {MAKES} module {number:06}"
        else:
            script = f'probe begin {{ println("said {number:06}") exit() }} # {self.mark}'
        return wrong_with(self._ask(script), f"said {number:06}", f"module {number:06}")

    def barrier(self) -> str:
        """Have all slots busy at the same time: a job ends when all the others run."""
        meeting = self.farm.place / f"meeting{next(self.numbers)}"
        meeting.mkdir(mode=0o777)
        meeting.chmod(0o777)
        script = (
            f": >$(mktemp {meeting}/XXXXXX); cd {meeting}; tries=0; "
            f"while [ $(ls | wc -l) -lt {NODES * SLOTS} ]; do "
            f"tries=$((tries + 1)); [ $tries -lt 300 ] || exit 9; sleep 0.2{self.mark}; done; "
            f"echo met; {MAKES} met"
        )
        with ThreadPoolExecutor(NODES * SLOTS) as threads:
            answers = list(threads.map(self._ask, [script] * (NODES * SLOTS)))
        return next(filter(None, (wrong_with(answer, "met", "met") for answer in answers)), "")

    def _ask(self, script: str) -> Answer | Exception:
        number = next(self.numbers)
        try:
            # Of different clients, and none of them known to the result cache.
            source = f"127.0.0.{number % 200 + 2}"
            text = f"{script} # {number}"
            return ask(self.port, text, release=self.release, source=source, timeout=ANSWER_S)
        except (OSError, KeyError, AssertionError, zipfile.BadZipFile) as exc:
            return exc


def wrong_with(answer: Answer | Exception, said: str, module: str) -> str:
    """Return what is wrong with an answer, if anything is."""
    if isinstance(answer, Exception):
        return f"{_NONE}: {answer!r}"
    if answer.rc != 0:
        return f"status {answer.rc}: {answer.stderr.strip()}"
    (data,) = [data for name, data in answer.files.items() if name.endswith(".ko")] or [b""]
    is_right = data == f"{module}\n".encode() and answer.stdout == f"{said}\n"
    return "" if is_right or said.encode() in data else f"another one's: {answer.stdout!r}, {data[:40]!r}"


def _server(farm: Farm, release: str, chance: random.Random) -> Member:
    names = dict(zip(("--farm-ca", "--farm-cert", "--farm-key"), farm.certified[1::2], strict=True))
    options = [word for pair in names.items() for word in pair]
    backend = chance.choice(("asyncio", "trio"))
    own = ("--engine", "dask", "--farm", farm.address, *options, "--backend", backend, "-r", release)
    return farm.start("--warmup=no", *own, program="stapsrv.daemon", STAPSRV_FARM_WAIT="120")


# Faults: what they return when they do, was healed.


def kill_node(site: Site) -> None:
    """Kill a node (-9), and start it again."""
    number = site.chance.randrange(NODES)
    site.nodes[number].kill()
    site.restart_node(number)


def kill_two_nodes(site: Site) -> None:
    """Kill two nodes at once."""
    numbers = site.chance.sample(range(NODES), 2)
    for number in numbers:
        site.nodes[number].kill()
    for number in numbers:
        site.restart_node(number)


def kill_all_nodes(site: Site) -> None:
    """Kill all nodes at once."""
    for node in site.nodes:
        node.kill()
    for number in range(NODES):
        site.restart_node(number)


def kill_scheduler(site: Site) -> None:
    """Kill the scheduler (-9); the next one is there a little later."""
    site.scheduler.kill()
    time.sleep(site.chance.uniform(0, 5))
    site.scheduler = site.farm.start_scheduler()


def stop_scheduler(site: Site) -> None:
    """Restart the scheduler."""
    site.scheduler.stop()
    site.scheduler = site.farm.start_scheduler()


def kill_scheduler_and_node(site: Site) -> None:
    """Kill the scheduler and a node, as the end of a host with both does."""
    number = site.chance.randrange(NODES)
    site.scheduler.kill()
    site.nodes[number].kill()
    site.scheduler = site.farm.start_scheduler()
    site.restart_node(number)


def freeze_scheduler(site: Site) -> None:
    """Stop the scheduler for a while (SIGSTOP)."""
    _freeze(site.scheduler, site.chance.uniform(1, 25))


def freeze_node(site: Site) -> None:
    """Stop a node for a while (SIGSTOP): the longer times are those in which it is given up."""
    _freeze(site.chance.choice(site.nodes), site.chance.uniform(1, _LATEST_S))


def cut_link(site: Site) -> None:
    """Cut a node's link, and mend it after a while."""
    number = site.chance.randrange(NODES)
    subprocess.run(["ip", "link", "set", f"node{number}", "nomaster"], check=True)
    time.sleep(site.chance.uniform(1, _LATEST_S))
    subprocess.run(["ip", "link", "set", f"node{number}", "master", "farm"], check=True)


def rolling_restart(site: Site) -> None:
    """Restart all nodes, one after the other."""
    for number in range(NODES):
        site.nodes[number].stop()
        site.restart_node(number)


def kill_server(site: Site) -> None:
    """Kill the server: its jobs leave the farm."""
    site.server.kill()


def _freeze(member: Member, seconds: float) -> None:
    member.pause()
    time.sleep(seconds)
    member.resume()


FAULTS: tuple[Callable[[Site], None], ...] = (
    *(kill_node, kill_two_nodes, kill_all_nodes, kill_scheduler, stop_scheduler, kill_scheduler_and_node),
    *(freeze_scheduler, freeze_node, cut_link, rolling_restart, kill_server),
)


def put_to_trial(site: Site, fault: Callable[[Site], None]) -> list[str]:
    """Let requests meet a fault; return what is not as it should be."""
    with ThreadPoolExecutor(20) as threads:
        times = [site.chance.uniform(0.0, 3.0) for _ in range(site.chance.randint(4, 14))]
        begun = [threads.submit(site.request, seconds) for seconds in times]
        time.sleep(site.chance.uniform(0, 2))
        fault(site)
        wrong = [each.result() for each in begun]
    # A dead server answers nothing; and nothing that is wrong.
    found = [each for each in wrong if each and (fault is not kill_server or not each.startswith(_NONE))]
    found += wait_back(lambda: [f"a process of a job is left: {pid}" for pid in processes_with(site.mark)])
    if fault is kill_server:
        site.restart_server()
    if site.release == RELEASE and (missing := site.barrier()):
        found.append(f"not all slots are back: {missing}")
    return found


def soak(site: Site, faults: Sequence[Callable[[Site], None]], seconds: float) -> list[str]:
    """Go through faults until the time is over; return what is not as it should be."""
    found: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for fault in site.chance.sample(faults, len(faults)):
            began = time.monotonic()
            wrong = put_to_trial(site, fault)
            print(f"  {fault.__name__:24}{time.monotonic() - began:6.1f} s  {'; '.join(wrong)}", flush=True)
            found += [f"{fault.__name__}: {each}" for each in wrong]
            if time.monotonic() > end:
                break
    return found


@contextlib.contextmanager
def site_at(
    place: Path, options: argparse.Namespace, links: Sequence[Sequence[str]], seed: int
) -> Iterator[Site]:
    """Set up a farm in a directory; all its processes end with the block."""
    authority = place / "ca"
    create_authority(authority)
    member = issue(authority, "member")
    files = (authority / "ca.pem", member.certificate_file, member.key_file)
    certified = [str(word) for pair in zip(("--ca", "--cert", "--key"), files, strict=True) for word in pair]
    environ = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "STAPSRV_MDNS": "no",
        "SYSTEMTAP_DIR": str(place / "systemtap"),
        **dict.fromkeys(("HOME", "TMPDIR"), str(place)),
    }
    if options.real is None:
        tree = place / "tree"
        (tree / "include" / "config").mkdir(parents=True)
        (tree / "include" / "config" / "kernel.release").write_text(f"{RELEASE}\n")
        environ["SYSTEMTAP_STAP"] = str(make_stap(place / "stap", STAND_IN))
        environ["STAP_PR11197_OVERRIDE"] = "1"
        release, own = RELEASE, ["-r", str(tree), "--sandbox", "off"]
    else:
        release, own = options.real.release, ["-r", options.real.release, "-R", str(options.real.runtime)]
    as_user: list[str] = []
    host = "127.0.0.1"
    if links[0]:
        shutil.chown(place, USER)
        for path in place.rglob("*"):
            shutil.chown(path, USER)
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--"]
        host = "10.77.0.1"
    with Farm.open(
        place,
        environ=environ,
        options=(*own, "--slots", str(SLOTS)),
        host=host,
        certified=certified,
        user=as_user,
    ) as farm:
        yield Site.of(farm, release, random.Random(seed), links)


@contextlib.contextmanager
def separate_hosts() -> Iterator[list[list[str]]]:
    """Give each node a network of its own, whose one cable leads to this process's own network."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("link", "set", "lo", "up")
    ip("link", "add", "farm", "type", "bridge")
    ip("address", "add", "10.77.0.1/24", "dev", "farm")
    ip("link", "set", "farm", "up")
    with contextlib.ExitStack() as held:
        links = []
        for number in range(NODES):
            words = [
                "setpriv",
                "--pdeathsig=KILL",
                "unshare",
                "--net",
                "sh",
                "-c",
                "echo; exec sleep infinity",
            ]
            holder = held.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE))
            held.callback(holder.kill)
            assert holder.stdout is not None
            holder.stdout.readline()
            inside = ["nsenter", f"--target={holder.pid}", "--net", "--"]
            name = f"node{number}"
            ip("link", "add", name, "type", "veth", "peer", "name", "uplink", "netns", str(holder.pid))
            ip("link", "set", name, "master", "farm", "up")
            for then in (
                f"address add 10.77.0.{10 + number}/24 dev uplink",
                "link set uplink up",
                "link set lo up",
            ):
                subprocess.run([*inside, "ip", *then.split()], check=True)
            links.append(inside)
        yield links


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = {fault.__name__: fault for fault in FAULTS}
    add = parser.add_argument
    add("faults", nargs="*", metavar="FAULT", help=f"default: all of {' '.join(names)}")
    add("--seeds", type=int, default=1, metavar="N", help="farms, one after the other (default: 1)")
    add("--first", type=int, default=1, metavar="N", help="the first seed (default: 1)")
    add("--seconds", type=float, default=60.0, metavar="N", help="for each, at least (default: 60)")
    add("--real", action="store_true", help="with the real stap")
    add("--keep", action="store_true", help="leave logs of a seed that failed behind")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(names):
        parser.error(f"{min(unknown)} is no fault")
    try:
        options.real = Installation.find(os.environ) if options.real else None
    except Unavailable as exc:
        parser.error(str(exc))
    signal.signal(signal.SIGTERM, end)
    is_root = os.geteuid() == 0
    if is_root and "STAPSRV_BENCH_NETWORK" not in os.environ:
        os.environ["STAPSRV_BENCH_NETWORK"] = "its own"
        os.execvp("unshare", ["unshare", "--net", "--", sys.executable, *sys.argv])
    faults = [names[name] for name in options.faults or names if is_root or name != "cut_link"]
    wrong = 0
    with contextlib.ExitStack() as held:
        links = held.enter_context(separate_hosts()) if is_root else [[]] * NODES
        for seed in range(options.first, options.first + options.seeds):
            place = Path(tempfile.mkdtemp(prefix="stapsrv-farm."))
            print(f"seed {seed}, load average {os.getloadavg()[0]:.1f}", flush=True)
            found = ["did not come to an end"]
            try:
                with site_at(place, options, links, seed) as site:
                    found = soak(site, faults, options.seconds)
                    found += in_logs(place)
            finally:
                if found and options.keep:
                    print(f"logs are in {place}")
                else:
                    shutil.rmtree(place, ignore_errors=True)
            for each in found:
                print(f"not as it should be: {each}")
            wrong += len(found)
    print("everything is as it should be" if not wrong else f"{wrong} faults")
    return 1 if wrong else 0


def in_logs(place: Path) -> list[str]:
    """Return the lines of the members' logs that no fault explains."""
    return [
        f"{log.name}: {line}"
        for log in sorted(place.glob("*.log"))
        for line in log.read_text(errors="replace").splitlines()
        if "Traceback" in line or "crashed" in line
    ]


if __name__ == "__main__":
    sys.exit(main())
