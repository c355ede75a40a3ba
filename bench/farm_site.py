"""A whole farm of this host to try things on: a server, a scheduler and three nodes, which are processes.

Their stap is the real one, or a stand-in that sleeps. With the real stap each node has another set of the
releases whose headers are installed: of two, the first, the second, and both.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import attrs

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.client import RELEASE, Answer
from kit.farm import OBEDIENT_NODE, Farm, Member
from kit.faulty import ask
from kit.real import Installation
from kit.stap import make_stap

from stapsrv.farm.ca import create_authority, issue

NODES, SLOTS = 3, 2
ANSWER_S = 180.0
# At first each node finds out the features of its releases, behind everything else on the machine.
OFFERED_S = 1200.0
USER = "stap-server"
NONE = "no answer"
MAKES = 'echo >"$answer/stap_x.ko"'


@attrs.define(kw_only=True)
class Site:
    """A whole farm, and the server that its clients know."""

    farm: Farm
    releases: Sequence[str]
    is_real: bool
    chance: random.Random
    links: Sequence[Sequence[str]]  # for each node, what a command begins with that runs on its host
    scheduler: Member
    nodes: list[Member] = attrs.field(factory=list)
    server: Member
    port: int = 0
    numbers: Iterator[int] = attrs.field(factory=partial(itertools.count, 1))

    @classmethod
    def of(
        cls, farm: Farm, releases: Sequence[str], chance: random.Random, links: Sequence[Sequence[str]]
    ) -> Site:
        site = cls(
            farm=farm,
            releases=releases,
            is_real=RELEASE not in releases,
            chance=chance,
            links=links,
            scheduler=farm.start_scheduler(),
            server=_server(farm, releases, chance),
        )
        site.nodes = [site.begin_node(number) for number in range(NODES)]
        for node in site.nodes:
            node.log.wait("is offered", timeout_s=OFFERED_S)
        site.find_port()
        return site

    def begin_node(self, number: int) -> Member:
        # The last one has all releases, each of the others one of them.
        has_all = not self.is_real or number == NODES - 1
        had = self.releases if has_all else [self.releases[number % len(self.releases)]]
        own = [word for release in had for word in ("-r", release)] if self.is_real else []
        return self.farm.begin_worker("--name", f"n{number}", *own, inside=self.links[number])

    def restart_node(self, number: int) -> None:
        """Start a node anew, and wait until it compiles."""
        self.nodes[number] = self.begin_node(number)
        self.nodes[number].log.wait("is offered", timeout_s=OFFERED_S)

    def restart_server(self) -> None:
        self.server = _server(self.farm, self.releases, self.chance)
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
        release = self.releases[number % len(self.releases)]
        if not self.is_real:
            script = f"sleep {seconds:.2f}{self.mark}; echo said {number:06}; {MAKES} module {number:06}"
        else:
            script = f'probe begin {{ println("said {number:06}") exit() }} # {self.mark}'
        answer = self._ask(script, release)
        return wrong_with(answer, release, f"said {number:06}", f"module {number:06}")

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
            answers = list(threads.map(partial(self._ask, script), self.releases * (NODES * SLOTS)))
        return next(filter(None, (wrong_with(answer, RELEASE, "met", "met") for answer in answers)), "")

    def _ask(self, script: str, release: str) -> Answer | Exception:
        number = next(self.numbers)
        try:
            # Of different clients, and none of them known to the result cache.
            source = f"127.0.0.{number % 200 + 2}"
            text = f"{script} # {number}"
            return ask(self.port, text, release=release, source=source, timeout=ANSWER_S)
        except (OSError, KeyError, AssertionError, zipfile.BadZipFile) as exc:
            return exc


def wrong_with(answer: Answer | Exception, release: str, said: str, module: str) -> str:
    """Return what is wrong with an answer, if anything is."""
    if isinstance(answer, Exception):
        return f"{NONE}: {answer!r}"
    if answer.rc != 0:
        return f"status {answer.rc}: {answer.stderr.strip()}"
    (data,) = [data for name, data in answer.files.items() if name.endswith(".ko")] or [b""]
    is_stand_in = data == f"{module}\n".encode() and answer.stdout == f"{said}\n"
    is_real = said.encode() in data and f"vermagic={release} ".encode() in data
    return "" if is_stand_in or is_real else f"another one's: {answer.stdout!r}, {data[:40]!r}"


def _server(farm: Farm, releases: Sequence[str], chance: random.Random) -> Member:
    names = dict(zip(("--farm-ca", "--farm-cert", "--farm-key"), farm.certified[1::2], strict=True))
    options = [word for pair in names.items() for word in pair]
    backend = chance.choice(("asyncio", "trio"))
    options += [word for release in releases for word in ("-r", release)]
    own = ("--engine", "dask", "--farm", farm.address, *options, "--backend", backend)
    return farm.start("--warmup=no", *own, program="stapsrv.daemon", STAPSRV_FARM_WAIT="120")


@contextlib.contextmanager
def site_at(
    place: Path, real: Installation | None, links: Sequence[Sequence[str]], seed: int
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
    if real is None:
        tree = place / "tree"
        (tree / "include" / "config").mkdir(parents=True)
        (tree / "include" / "config" / "kernel.release").write_text(f"{RELEASE}\n")
        environ["SYSTEMTAP_STAP"] = str(make_stap(place / "stap", OBEDIENT_NODE))
        environ["STAP_PR11197_OVERRIDE"] = "1"
        releases, own = (RELEASE,), ["-r", str(tree), "--sandbox", "off"]
    else:
        releases, own = real.releases[:2], ["-R", str(real.runtime)]
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
        yield Site.of(farm, releases, random.Random(seed), links)


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
