#!/usr/bin/env python3
"""Do to SystemTap's own server and to this one what goes wrong in the field; print what each of them did.

Each fault meets a server of its own, in directories of its own, with a user's real stap: first the original,
then this one. The rows are those of docs/reliability.md, which --into writes anew.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import kit.real
from kit.client import frame, request
from kit.faulty import connect, receive
from kit.footprint import descendants, wait_back
from kit.real import (
    CompilerGate,
    Installation,
    Server,
    Stap,
    Unavailable,
    finish,
    serving,
    serving_original,
)
from kit.trees import ProcessObserver

ORIGINAL, OURS = "SystemTap's own", "stapsrv"
BEGIN, END = "<!-- rows of bench/faults.py -->\n", "<!-- end of these rows -->\n"
PATIENCE_S = 10.0
SILENT = 40


@attrs.frozen
class Contender:
    """One of the two servers, on a user of its own.

    Attributes:
        name: whose it is.
        stap: the user, whose stap has compiled before.
    """

    name: str
    stap: Stap

    @contextlib.contextmanager
    def serving(self, *options: object) -> Iterator[Server]:
        """Have it serve; it is killed in the end, with all that it began."""
        begin = serving if self.name == OURS else serving_original
        with contextlib.ExitStack() as served:
            server = served.enter_context(begin(self.stap, *options))
            try:
                yield server
            finally:
                for pid in (*descendants(server.pid), server.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                # A server that ends is a result here, not a failure of the run.
                with contextlib.suppress(AssertionError, subprocess.TimeoutExpired, ProcessLookupError):
                    served.close()

    def request(self, *arguments: str | bytes) -> bytes:
        return frame(request(*arguments, release=self.stap.installation.release))

    def good_one(self, server: Server) -> str:
        """Say what becomes of a sound request."""
        began = time.monotonic()
        try:
            tls = connect(server.port, timeout=PATIENCE_S)
            tls.sendall(self.request("-p1", "-e", f"probe begin {{ println({began}) }}".replace(".", "")))
            answer = receive(tls)
        except (OSError, zipfile.BadZipFile) as exc:
            if isinstance(exc, TimeoutError):
                return f"a good request has no answer after {PATIENCE_S:g} s"
            return f"a good request fails: {exc}"
        return f"a good request is answered after {time.monotonic() - began:.1f} s, status {answer.rc}"


def silent(contender: Contender) -> str:
    """A client connects and says nothing."""
    with contender.serving() as server, socket.create_connection(("127.0.0.1", server.port)):
        return contender.good_one(server)


def many_silent(contender: Contender) -> str:
    """Forty clients connect and say nothing."""
    with contextlib.ExitStack() as held, contender.serving() as server:
        for _ in range(SILENT):
            # Where none of them is taken on, the kernel's own queue is full after some.
            with contextlib.suppress(TimeoutError):
                held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=0.5))
        return contender.good_one(server)


def mute(contender: Contender) -> str:
    """As many clients as there are workers shake hands and send half a request."""
    with contextlib.ExitStack() as held, contender.serving("--max-threads", 2) as server:
        for _ in range(2):
            try:
                tls = held.enter_context(connect(server.port, timeout=PATIENCE_S))
            except OSError:
                continue
            tls.sendall(contender.request("-p1", "-e", "probe begin {}")[:100])
        return contender.good_one(server)


def link(contender: Contender) -> str:
    """The script in a request is a symbolic link to a file that only the server's user can read."""
    secret = contender.stap.place / "secret"
    secret.write_text("the-server-s-secret\n")
    secret.chmod(0o600)
    with contender.serving() as server, connect(server.port, timeout=30) as tls:
        tls.sendall(frame(_zip_with_link(contender.stap.installation.release, secret)))
        answer = receive(tls)
    if "the-server-s-secret" in answer.stdout + answer.stderr:
        return "the file's first line is in the answer"
    return f"refused: {answer.stderr.strip().splitlines()[0]}"


def incbin(contender: Contender) -> str:
    """A guru's script has the assembler embed the server's key database (`.incbin`)."""
    with contender.serving() as server:
        key = contender.stap.directory / "ssl" / "server" / "key4.db"
        code = f'__asm__(".incbin \\"{key}\\"");'
        ran = contender.stap.via(
            server.port, "-g", "-p4", "-e", f"%{{\n{code}\n%}}\nprobe begin {{ exit() }}"
        )
        if ran.status == 0 and b"SQLite format 3" in (contender.stap.place / ran.module).read_bytes():
            return "the client has the private keys, in its module"
    return "the compile fails: the assembler finds no such file"


def disconnect(contender: Contender) -> str:
    """The client is killed in the middle of its compile."""
    with contender.serving() as server, _compiling(contender, server) as compiling:
        compiling.client.kill()
        return f"{_left_of(compiling.tree, 5)}; {contender.good_one(server)}"


def stop_busy(contender: Contender) -> str:
    """TERM stops the server while a compile runs that would end by itself a little later."""
    # The time that a compile takes is that of the machine; by default it has five seconds.
    options = ("--drain-timeout", "120") if contender.name == OURS else ()
    with contender.serving(*options) as server, _compiling(contender, server) as compiling:
        server.signal(signal.SIGTERM)
        server.log.wait("Received signal")
        compiling.gate.open()
        ran = finish(compiling.client)
        outcome = "the client has its module" if ran.status == 0 else f"the client fails: {_last(ran.stderr)}"
        return f"{outcome}; {_end_of(server)}"


def stop_hanging(contender: Contender) -> str:
    """TERM stops the server while a compile hangs."""
    with contender.serving() as server, _compiling(contender, server) as compiling:
        server.signal(signal.SIGTERM)
        end = _end_of(server, timeout_s=20)
        try:
            _, said = compiling.client.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            outcome = "its client waits on"
        else:
            outcome = f"its client prints: {_last(said)}"
        return f"{end}; {outcome}; {_left_of(compiling.tree, 2)}"


def kill(contender: Contender) -> str:
    """The server is killed (-9) in the middle of a compile, and started again."""
    begin = serving if contender.name == OURS else serving_original
    with contender.serving() as server, _compiling(contender, server) as compiling:
        server.signal(signal.SIGKILL)
        server.wait()
        left = _left_of(compiling.tree, 3)
    before = list(server.temporary.iterdir())
    with contextlib.suppress(AssertionError), begin(contender.stap, TMPDIR=str(server.temporary)) as again:
        after = [path for path in before if path.exists()]
        served = contender.good_one(again)
    return f"{left}; of {len(before)} temporary directories {len(after)} stay after the next start; {served}"


def descriptors(contender: Contender) -> str:
    """Idle connections use up the server's file descriptors, and go."""
    with contender.serving() as server:
        contender.good_one(server)
        open_files = Path(f"/proc/{server.pid}/fd")
        held = len(list(open_files.iterdir()))
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (held + 12, hard))
        with contextlib.ExitStack() as connections:
            for _ in range(30):
                with contextlib.suppress(OSError):
                    connections.enter_context(
                        socket.create_connection(("127.0.0.1", server.port), timeout=0.5)
                    )
            _watch(server, lambda: len(list(open_files.iterdir())) == held + 12)
        _watch(server, lambda: len(list(open_files.iterdir())) <= held)
        if server.process.poll() is not None:
            return f"the server has ended with status {server.process.returncode}"
        return contender.good_one(server)


def reset(contender: Contender) -> str:
    """Fifty clients connect and reset their connections at once, in the middle of the handshake."""
    with contender.serving() as server:
        for _ in range(50):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", server.port), timeout=0.5) as client,
            ):
                client.sendall(b"\x16\x03\x01\x02\x00\x01")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return contender.good_one(server)


FAULTS: tuple[Callable[[Contender], str], ...] = (
    *(silent, many_silent, mute, reset, link, incbin, disconnect, stop_busy, stop_hanging, kill, descriptors),
)


def _zip_with_link(release: str, target: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (
            ("version", "4.8"),
            ("sysinfo", f"sysinfo: {release} x86_64"),
            ("argv1", "-p1"),
            ("argv2", "script/x.stp"),
        ):
            archive.writestr(name, data)
        header = zipfile.ZipInfo("script/x.stp")
        header.create_system = 3
        header.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(header, str(target))
    return buffer.getvalue()


@attrs.frozen
class Compile:
    """A compile that goes on only when it is let."""

    gate: CompilerGate
    client: subprocess.Popen[str]
    tree: ProcessObserver


@contextlib.contextmanager
def _compiling(contender: Contender, server: Server) -> Iterator[Compile]:
    stap = contender.stap
    directory = Path(tempfile.mkdtemp(prefix="gate.", dir=stap.place)) / "tapset"
    gate = CompilerGate(directory, visible=stap.directory / "cache")
    client = stap.begin_via(server.port, "-p4", "-I", directory, "-e", gate.SCRIPT)
    try:
        gate.wait_reached(client)
        yield Compile(gate, client, ProcessObserver(server.pid))
    finally:
        client.kill()
        client.communicate()
        gate.close()


def _left_of(tree: ProcessObserver, seconds: float) -> str:
    """Say whether a compile outlived what should have ended it."""
    left = tree.wait_left(seconds)
    tree.kill()
    if not left:
        return "nothing of the compile is left"
    return f"{len(left)} processes of the compile run on after {seconds:g} s"


def _watch(server: Server, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds that only /proc shows, or the server has ended, or it is too late."""
    wait_back(
        lambda: [] if server.process.poll() is not None or condition() else ["waiting"], timeout_s=PATIENCE_S
    )


def _end_of(server: Server, *, timeout_s: float = PATIENCE_S) -> str:
    began = time.monotonic()
    try:
        status = server.process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"the server has not ended after {timeout_s:g} s"
    return f"the server ends after {time.monotonic() - began:.1f} s with status {status}"


def _last(said: str) -> str:
    lines = said.strip().splitlines()
    own = [line for line in lines if line.startswith("Server: ")]
    # Debian's stap has a tip for every failure.
    lines = [line for line in lines if not line.startswith("Tip: ")]
    return f"`{(own or lines or ['nothing'])[-1]}`"


def run(place: Path, installation: Installation, wanted: list[str]) -> dict[str, dict[str, str]]:
    """Return, for each fault, what each server did."""
    contenders = []
    for name, directory in ((ORIGINAL, "original"), (OURS, "ours")):
        own = place / directory
        own.mkdir()
        stap = Stap(installation=installation, directory=own / "systemtap", place=own)
        if contenders:
            # What stap knows of the kernel release is the same for both.
            shutil.copytree(contenders[0].stap.directory / "cache", stap.directory / "cache")
        else:
            say("warming stap's cache")
            warmed = stap.local("-p4", "-e", "probe begin { exit() }")
            if warmed.status != 0:
                sys.exit(f"stap does not compile:\n{warmed.stderr}")
        contenders.append(Contender(name, stap))
    found: dict[str, dict[str, str]] = {}
    for fault in FAULTS:
        if wanted and fault.__name__ not in wanted:
            continue
        title = (fault.__doc__ or "").strip()
        found[title] = {}
        for contender in contenders:
            found[title][contender.name] = fault(contender)
            say(f"{fault.__name__}: {contender.name}: {found[title][contender.name]}")
    return found


def rows(found: dict[str, dict[str, str]]) -> str:
    lines = [f"| fault | {ORIGINAL} | {OURS} |", "| --- | --- | --- |"]
    lines += [f"| {title} | {did[ORIGINAL]} | {did[OURS]} |" for title, did in found.items()]
    return "".join(f"{line}\n" for line in lines)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"default: {' '.join(names)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the observations there, too")
    parser.add_argument("--from", dest="source", metavar="FILE", type=Path, help="of an earlier --json")
    parser.add_argument("--into", metavar="FILE", type=Path, help="put the rows into this page")
    options = parser.parse_args()
    if options.source is not None:
        found = json.loads(options.source.read_text())
    else:
        if os.geteuid() == 0:
            parser.error("compile servers do not run as root; try: packaging/as-stap-server bench/faults.py")
        try:
            installation = Installation.find(os.environ)
        except Unavailable as exc:
            parser.error(str(exc))
        # Neither is advertised on a network: mDNS is off here, and the original finds no D-Bus.
        kit.real.PATIENCE_S = 300.0
        os.environ |= {"STAPSRV_MDNS": "no", "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/dev/null"}
        with tempfile.TemporaryDirectory(prefix="stapsrv-faults.") as name:
            found = run(Path(name), installation, options.faults)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    if options.into is not None:
        before, _, rest = options.into.read_text().partition(BEGIN)
        options.into.write_text(f"{before}{BEGIN}\n{rows(found)}\n{END}{rest.partition(END)[2]}")
    print(rows(found), end="")


if __name__ == "__main__":
    main()
