"""Hosts in namespaces of their own, joined by cables that lead nowhere else. Needs root.

A host has its own network, name, process table and ``/run``, and the files of the real one. It goes with
the process that holds it, and whatever runs on it goes with it: nothing needs to be removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

WAIT_S = 60.0
_RUN_S = 110.0
"""For a first compile on a busy machine; an idle one takes 10 s."""

_T = TypeVar("_T")

_SET_UP = """\
set -e
hostname "$1"
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
mount -t tmpfs tmpfs /run
mkdir /run/dbus /run/avahi-daemon
ip link set lo up
echo ready
exec sleep infinity
"""
_NAMESPACES = ("--net", "--mount", "--uts", "--pid")

_BUS = """\
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
_AVAHI = """\
[server]
use-ipv4=yes
use-ipv6=yes
[publish]
publish-workstation=no
publish-hinfo=no
"""


class Program:
    """A program that runs, and the lines that it has printed, to either stream."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._rest = b""

    def wait_line(self, pattern: str, *, after: int = 0) -> str:
        """Return the first line, from the ``after``-th on, that ``pattern`` is found in."""
        return self.wait(lambda: self.find_line(pattern, after=after))

    def find_line(self, pattern: str, *, after: int = 0) -> str | None:
        self.read_lines()
        return next((line for line in self.lines[after:] if re.search(pattern, line)), None)

    def wait(self, look: Callable[[], _T | None], wait_s: float = WAIT_S) -> _T:
        """Return what ``look`` returns as soon as it is not None; it is asked after each line."""
        deadline = time.monotonic() + wait_s
        while True:
            self.read_lines()
            found = look()
            if found is not None:
                return found
            left = deadline - time.monotonic()
            assert left > 0, self.lines
            self._wait_output(left)

    def read_lines(self) -> None:
        """Take in what was printed by now."""
        while not self._output.closed and (data := self._output.read(65536)):
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.lines += [line.decode(errors="replace") for line in lines]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self._process.poll() is None:
            # Our child is nsenter, which waits for its own, if that is still there, and has no signal for it.
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
            for child in children.split():
                os.kill(int(child), number)
        try:
            return self._process.wait(WAIT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(WAIT_S)
        self.read_lines()
        self._output.close()

    def _wait_output(self, wait_s: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            selector.select(wait_s)
        assert self._process.poll() is None, self.lines


class Host:
    """A host of this machine; see :func:`open_host`."""

    def __init__(self, name: str, pid: int, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self._pid = pid
        self._running: list[Program] = []

    def run(self, *command: object, user: str | None = None, place: Path = Path("/"), **environ: str) -> str:
        """Run a program to its end, which has to be a good one, and return what it printed to both streams.

        Standard output comes first, and an empty line between the two where there are two.
        """
        words, environ = self._inside(command, user, place), {**os.environ, **environ}
        done = subprocess.run(
            words,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RUN_S,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return "\n".join(filter(None, (done.stdout, done.stderr)))

    def start(self, *command: object, user: str | None = None, **environ: str) -> Program:
        """Start a program, which ends with the host if not before."""
        program = Program(self._inside(command, user), {**os.environ, **environ})
        self._running.append(program)
        return program

    def start_avahi(self) -> Program:
        """Start avahi-daemon, and the message bus if it is not there yet; return when it serves."""
        if not (self.directory / "bus.conf").exists():
            (self.directory / "bus.conf").write_text(_BUS)
            (self.directory / "avahi.conf").write_text(_AVAHI)
            self.start(
                "dbus-daemon",
                f"--config-file={self.directory}/bus.conf",
                "--nofork",
                "--nopidfile",
                "--print-address",
            ).wait_line("^unix:")
        avahi = self.start(
            "avahi-daemon", "-f", self.directory / "avahi.conf", "--no-chroot", "--no-drop-root"
        )
        avahi.wait_line("Server startup complete")
        return avahi

    def browse(self) -> Browser:
        """Look at the compile servers as avahi sees them, from now on."""
        return Browser(self.start("avahi-browse", "--resolve", "--parsable", "_stap._tcp"))

    def look(self) -> list[Seen]:
        """Return the compile servers that avahi sees now."""
        # It waits for ever for a service that went while it was being resolved.
        command = "timeout 3 avahi-browse --resolve --parsable --terminate _stap._tcp || test $? = 124"
        printed = self.run("sh", "-c", command)
        return parse_seen(printed.splitlines())

    def ip(self, *words: str) -> None:
        self.run("ip", *words)

    def close(self) -> None:
        for program in self._running:
            program.kill()

    def _inside(self, command: Sequence[object], user: str | None, place: Path = Path("/")) -> list[str]:
        enter = ["nsenter", f"--target={self._pid}", *_NAMESPACES, f"--wd={place}", "--"]
        as_user = (
            [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        )
        return [*enter, *as_user, *map(str, command)]


@attrs.frozen
class Seen:
    """A service as avahi resolved it.

    Attributes:
        interface: where it was received.
        name: the instance.
        protocol: ``IPv4`` or ``IPv6``: what it was received over.
        host: the host name.
        address: one of the host's.
        port: the port.
        text: the strings of the TXT record, sorted.
    """

    interface: str
    name: str
    protocol: str
    host: str
    address: str
    port: int
    text: tuple[str, ...]

    def strings(self, key: str) -> tuple[str, ...]:
        """Return what the TXT record has for ``key``."""
        pairs = (string.partition("=") for string in self.text)
        return tuple(value for found, _, value in pairs if found == key)

    @property
    def keys(self) -> list[str]:
        return [string.partition("=")[0] for string in self.text]

    @property
    def sysinfo(self) -> str:
        return self.strings("sysinfo")[0]


class Browser:
    """avahi-browse at work."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def wait(self, condition: Callable[[list[Seen]], bool], wait_s: float = WAIT_S) -> list[Seen]:
        """Return the services that are there as soon as ``condition`` holds for them."""

        def look() -> list[Seen] | None:
            seen = self.seen()
            return seen if condition(seen) else None

        return self._program.wait(look, wait_s)

    def seen(self) -> list[Seen]:
        """Return the services that are there."""
        self._program.read_lines()
        return parse_seen(self._program.lines)


def parse_seen(lines: Sequence[str]) -> list[Seen]:
    """Read what ``avahi-browse --resolve --parsable`` prints: ``+`` found, ``=`` resolved, ``-`` gone.

    Other lines are complaints, about a service that went while it was resolved, say.
    """
    there: dict[tuple[str, ...], Seen] = {}
    for line in lines:
        if not line.startswith(("+;", "=;", "-;")):
            continue
        sign, interface, protocol, name, *fields = _unescaped(line).split(";", 9)
        key = (interface, protocol, name)
        if sign == "-":
            there.pop(key, None)
        elif sign == "=":
            _type, _domain, host, address, port, text = (*fields, "")[:6]
            strings = tuple(sorted(re.findall(r'"([^"]*)"', text)))
            there[key] = Seen(interface, name, protocol, host, address, int(port), strings)
    return list(there.values())


@contextlib.contextmanager
def open_host(name: str, directory: Path) -> Iterator[Host]:
    """Make a host with a loopback interface and nothing else.

    Args:
        name: its host name.
        directory: for its configuration files; readable by all.
    """
    # The host ends with us, even if we are killed.
    command = ["setpriv", "--pdeathsig=KILL", "unshare", *_NAMESPACES]
    command += ["--fork", "--kill-child", "--mount-proc", "--propagation=private"]
    with subprocess.Popen(
        [*command, "sh", "-c", _SET_UP, "sh", name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
            host = Host(name, int(children[0]), directory)
            with contextlib.closing(host):
                yield host
        finally:
            holder.kill()


def join(*ends: tuple[Host, str, str]) -> None:
    """Lay a cable between two hosts: for each end the host, the interface's name and its address."""
    (left, left_name, _), (right, right_name, _) = ends
    command = ["ip", "link", "add", left_name, "netns", str(left._pid), "type", "veth"]
    subprocess.run([*command, "peer", "name", right_name, "netns", str(right._pid)], check=True)
    for host, name, address in ends:
        host.ip("address", "add", address, "dev", name)
        host.ip("link", "set", name, "up")


def _unescaped(line: str) -> str:
    r"""Undo avahi's ``\032`` for a blank."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1])), line)
