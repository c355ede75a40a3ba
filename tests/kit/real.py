"""The real SystemTap: what a host has of it, its client, and compile servers for that client."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs

from .client import trusting

ORIGINAL = Path("/usr/lib/systemtap/stap-serverd")
STOCK_RUNTIME = Path("/usr/share/systemtap/runtime")
PATCHED_RUNTIME = Path("/var/lib/stap-server/runtime")
PATIENCE_S = 300.0
"""How long a test waits for anything: a first compile takes 15 s on an idle machine, minutes on others."""

_LOCALE = re.compile(r"LANG|LANGUAGE|LC_[A-Z]+")


class Unavailable(Exception):
    """This host lacks something that the real client needs; says what, and what to do."""


@attrs.frozen
class Installation:
    """What there is to compile for, and with.

    Attributes:
        releases: those whose kernel headers are installed, the newest first.
        runtime: SystemTap's runtime, in a version that compiles against these headers.
    """

    releases: tuple[str, ...]
    runtime: Path

    @property
    def release(self) -> str:
        return self.releases[0]

    @classmethod
    def find(cls, environ: Mapping[str, str], modules: Path = Path("/lib/modules")) -> Installation:
        """Look around on this host; ``STAPSRV_TEST_RUNTIME`` names a runtime of the caller's own.

        Raises:
            Unavailable: something is missing.
        """
        for program in ("stap", "zip", "unzip", "modinfo", "certutil", str(ORIGINAL)):
            if shutil.which(program, path=f"{environ['PATH']}:/usr/sbin:/sbin") is None:
                raise Unavailable(f"{program} is not installed; run packaging/setup")
        releases = sorted(
            (tree.parent.name for tree in modules.glob("*/build") if (tree / "Makefile").exists()), key=_age
        )
        if not releases:
            raise Unavailable("no kernel headers are installed; run packaging/setup")
        return cls(tuple(releases), _find_runtime(environ, modules / releases[0]))


@attrs.frozen
class Ran:
    """What a stap that has ended said."""

    status: int
    stdout: str
    stderr: str

    @property
    def module(self) -> str:
        """The name of the module, which is the last line of pass 4."""
        return Path(self.stdout.splitlines()[-1]).name


@attrs.frozen
class Asked:
    """A command line for stap, and what to look for in its answer.

    Attributes:
        arguments: for the client and for stap alike.
        words: a part of the answer, to be sure that it is about this.
        stdin: what is typed.
        status: stap's exit status.
    """

    arguments: tuple[str, ...]
    words: str
    stdin: str = ""
    status: int = 0


@attrs.frozen(kw_only=True)
class Stap:
    """The real stap as one user has it, in a directory of its own.

    Attributes:
        installation: what this host has.
        directory: the user's ``SYSTEMTAP_DIR``: the compile cache, certificates and trust.
        place: where it works; scripts and modules are here, its temporary files in ``tmp``.
    """

    installation: Installation
    directory: Path
    place: Path
    _begun: list[subprocess.Popen[str]] = attrs.field(factory=list, init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.temporary.mkdir(exist_ok=True)

    @property
    def temporary(self) -> Path:
        return self.place / "tmp"

    def at(self, place: Path) -> Stap:
        """Return the same user's stap in another directory."""
        return attrs.evolve(self, place=place)

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of this user's programs; in plain UTF-8 unless ``more`` says otherwise."""
        kept = {name: value for name, value in os.environ.items() if not _LOCALE.fullmatch(name)}
        kept |= {"LANG": "C.UTF-8", "SYSTEMTAP_DIR": str(self.directory), "TMPDIR": str(self.temporary)}
        return kept | more

    def local(self, *arguments: object, stdin: str = "") -> Ran:
        """Run stap without a server, as a server would run it."""
        own = ("-r", self.installation.release, "-R", self.installation.runtime)
        return finish(self._begin(*own, *arguments), stdin)

    def via(self, server: int | str, *arguments: object, stdin: str = "", **environ: str) -> Ran:
        """Run the client; see :meth:`begin_via`."""
        return finish(self.begin_via(server, *arguments, **environ), stdin)

    def begin_via(
        self, server: int | str, *arguments: object, release: str | None = "newest", **environ: str
    ) -> subprocess.Popen[str]:
        """Start the client; :func:`finish` waits for it.

        Args:
            server: a port on localhost, or what ``--use-server`` is given.
            arguments: further ones.
            release: to compile for; None to say nothing about it.
            environ: changes to the client's environment.
        """
        where = f"localhost:{server}" if isinstance(server, int) else server
        wanted = self.installation.release if release == "newest" else release
        own = () if wanted is None else ("-r", wanted)
        return self._begin(f"--use-server={where}", *own, *arguments, **environ)

    def end(self) -> None:
        """End all that was started here and nobody has waited for, because a test failed."""
        for process in self._begun:
            if process.stdout is not None and not process.stdout.closed:
                process.kill()
                process.communicate()

    def _begin(self, *arguments: object, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["stap", *map(str, arguments)],
            cwd=self.place,
            env=self.environ(**environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self._begun.append(process)
        return process


def finish(process: subprocess.Popen[str], stdin: str = "") -> Ran:
    """Give a program its standard input and wait until it has ended."""
    try:
        stdout, stderr = process.communicate(stdin, timeout=PATIENCE_S)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Ran(process.returncode, stdout, stderr)


class FollowedLog:
    """A log file that is read as it grows; coreutils' ``tail`` is woken by the kernel when it does."""

    def __init__(self, path: Path, tail: subprocess.Popen[bytes], writer: int) -> None:
        self.path = path
        self._tail = tail
        self._writer = (
            writer  # a pidfd, readable when the writer has ended, which tail does not see in a zombie
        )
        self._text = ""

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, writer: int) -> Iterator[FollowedLog]:
        """Follow a log, which need not exist yet, as long as process ``writer`` lives."""
        path.touch()
        command = ["tail", f"--pid={writer}", "--lines=+1", "--follow", str(path)]
        pidfd = os.pidfd_open(writer)
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
                try:
                    yield cls(path, tail, pidfd)
                finally:
                    tail.kill()
        finally:
            os.close(pidfd)

    @property
    def lines(self) -> list[str]:
        """All lines so far, without their times."""
        return [re.sub(r"^.{24}: ", "", line) for line in self.path.read_text().splitlines()]

    def count(self, pattern: str) -> int:
        """Return how many lines match so far."""
        return sum(re.search(pattern, line) is not None for line in self.lines)

    def has(self, pattern: str, count: int) -> bool:
        """Whether so many lines match; waits until there are as many: logs are written a moment later."""
        if count:
            self.wait(re.sub(r"^\^", "^.{24}: ", pattern), count=count)
        return self.count(pattern) == count

    def wait(self, pattern: str, *, count: int = 1, timeout_s: float | None = None) -> re.Match[str]:
        """Wait until so many lines match, for :data:`PATIENCE_S` by default; returns the last match."""
        deadline = time.monotonic() + (PATIENCE_S if timeout_s is None else timeout_s)
        stream = self._tail.stdout
        assert stream is not None
        while len(found := list(re.finditer(pattern, self._text, re.MULTILINE))) < count:
            ready, *_ = select.select([stream, self._writer], [], [], max(0.0, deadline - time.monotonic()))
            if self._writer in ready:
                self._text = self.path.read_text(errors="replace")
                found = list(re.finditer(pattern, self._text, re.MULTILINE))
                assert len(found) >= count, f"its writer ended before {pattern!r} was logged:\n{self._text}"
                break
            new = os.read(stream.fileno(), 65536) if ready else b""
            assert new, f"the log has not {count} times what matches {pattern!r}:\n{self._text}"
            self._text += new.decode(errors="replace")
        return found[count - 1]


@attrs.frozen
class Server:
    """A compile server that accepts, as a process of its own.

    Attributes:
        process: the server's.
        port: where it listens.
        log: what it logs.
        temporary: its ``TMPDIR``, where nobody else puts anything.
    """

    process: subprocess.Popen[str]
    port: int
    log: FollowedLog
    temporary: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end and return its exit status."""
        return self.process.wait(timeout=PATIENCE_S)


@contextlib.contextmanager
def serving(
    stap: Stap, *options: object, backend: str | None = None, release: bool = True, **environ: str | None
) -> Iterator[Server]:
    """Serve ``stap``'s user with this project's server; it is ended by TERM and has to take it well.

    Args:
        stap: whose certificates and cache are used, and where log and temporary files go.
        options: further ones for ``stap-serverd``.
        backend: of the server's event loop; None for the one that it has by itself.
        release: whether to serve the newest release; else ``options`` name releases.
        environ: changes to the server's environment; None for what is not to be there.
    """
    command = [sys.executable, "-m", "stapsrv.daemon"]
    command += [] if backend is None else ["--backend", backend]
    # Few servers of tests live as long as the builds take that plans are made of.
    command += [] if any(str(option).startswith("--prepared") for option in options) else ["--prepared=no"]
    with _started(stap, command, *options, release=release, **environ) as server:
        yield server
        if server.process.poll() is None:
            server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.log.count("crashed|Traceback") == 0
        leftovers = [path.name for path in server.temporary.iterdir()]
        assert "-k" in options or not leftovers, leftovers


@contextlib.contextmanager
def serving_original(stap: Stap, *options: object, **environ: str) -> Iterator[Server]:
    """Serve ``stap``'s user with SystemTap's own server."""
    has_certificate = (stap.directory / "ssl" / "server" / "stap.cert").exists()
    with _started(stap, [str(ORIGINAL)], *options, release=True, **environ) as server:
        if not has_certificate:
            # It listens before it makes one and has the user's client trust that; then it shakes hands.
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
                trusting().wrap_socket(connection).close()
        yield server
        server.signal(signal.SIGTERM)
        server.wait()


@contextlib.contextmanager
def _started(
    stap: Stap, command: list[str], *options: object, release: bool, **environ: str | None
) -> Iterator[Server]:
    number = len(list(stap.place.glob("server*")))
    place = stap.place / f"server{number}"
    temporary = place / "tmp"
    temporary.mkdir(parents=True)
    command = [*command, f"--log={place / 'log'}", "-R", str(stap.installation.runtime)]
    command += ["-r", stap.installation.release] if release else []
    variables = stap.environ(TMPDIR=str(temporary)) | environ
    with (
        (place / "output").open("w") as output,
        subprocess.Popen(
            [*command, *map(str, options)],
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
        ) as process,
        FollowedLog.open(place / "log", process.pid) as log,
    ):
        try:
            port = int(log.wait(r"Using network address \S+:(\d+)$")[1])
            # The original says it before it listens, and no more after that.
            wait_until(lambda: is_listening(port) or process.poll() is not None)
            yield Server(process, port, log, temporary)
        finally:
            process.kill()


def cert(stap: Stap, verb: str, directory: Path, *options: str) -> str:
    """Run ``stap-server cert`` for the certificate in a directory; return what it prints."""
    command = [
        sys.executable,
        "-m",
        "stapsrv.control.cli.main",
        "cert",
        verb,
        "--ssl",
        str(directory),
        *options,
    ]
    return subprocess.run(command, env=stap.environ(), capture_output=True, text=True, check=True).stdout


def is_listening(port: int) -> bool:
    """Whether a socket of this host listens on ``port``: seen without a connection to it."""
    listening = re.compile(rf":{port:04X} [0-9A-F]+:0000 0A ")
    return any(listening.search(Path(f"/proc/net/{table}").read_text()) for table in ("tcp", "tcp6"))


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again, where nothing reports what is waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class CompilerGate:
    """A tapset that the compiler cannot read past until the test lets it.

    Its C includes a named pipe. The compiler's opening of it, which a test can wait for, shows that the
    request is in the middle of a real compile; it goes on when the pipe is closed.

    Args:
        directory: made, and given to the client with ``-I``.
        visible: made, for the pipe; compiles see it by the server's :attr:`option`.
    """

    SCRIPT = "probe begin { gated() exit() }"

    def __init__(self, directory: Path, visible: Path) -> None:
        directory.mkdir()
        visible.mkdir(exist_ok=True)
        self.directory = directory
        self.option = f"--sandbox-read={visible}"
        self._pipe = Path(tempfile.mkdtemp(prefix="gate.", dir=visible)) / "gate.h"
        self._fd = -1
        os.mkfifo(self._pipe)
        (directory / "gated.stp").write_text(f'%{{\n#include "{self._pipe}"\n%}}\nfunction gated() %{{ %}}\n')

    def wait_reached(self, client: subprocess.Popen[str]) -> None:
        """Wait until the compiler stands at the gate, as long as ``client`` lives."""

        def reached() -> bool:
            assert client.poll() is None, finish(client)
            # To open it and wait would be for ever where the client has ended.
            with contextlib.suppress(OSError):  # ENXIO: nobody reads yet
                self._fd = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
            return self._fd >= 0

        wait_until(reached)

    def open(self) -> None:
        """Let the compiler pass, and all that read the file after it."""
        plain = self._pipe.with_suffix(".open")
        plain.touch()
        plain.replace(self._pipe)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Let the compiler pass, and leave nothing behind."""
        self.open()
        shutil.rmtree(self._pipe.parent)


def vermagic(module: Path) -> str:
    """Return the kernel release that a module was made for; a file that is no module has none."""
    command = ["modinfo", "-F", "vermagic", str(module)]
    environ = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return shown.stdout.split()[0]


def without_client_lines(ran: Ran) -> Ran:
    """Return what the server's stap said, without what the client adds by itself.

    On standard error it says that a certificate for this host's name is shown for ``localhost``, and that
    the server failed, with Debian's tip, which the server's stap has given already. After ``-L`` it looks
    for a module, which nobody made, and names it all the same.
    """
    stdout = re.sub(r"^stap_\d+\.ko\n\Z", "", ran.stdout, flags=re.MULTILINE)
    stderr = re.sub(r"WARNING: The domain name, localhost, does not match .*\n(  \S+\n)+", "", ran.stderr)
    # SystemTap 5 adds whose user it is.
    copied = r"Copy failed \(\S+ to \"stap_\d+\.ko\"\): No such file or directory(\. Your uid=\d+\.)?\n\Z"
    stderr = re.sub(copied, "", stderr)
    stderr = re.sub(r"Passes: via server failed\. .*\n(Tip: .*\n)?\Z", "", stderr)
    return Ran(ran.status, stdout, stderr)


def without_word_of_jobs(ran: Ran) -> Ran:
    """Return what stap said, without make's word that other jobs go on when one has failed.

    It is said only where they do, which is different from run to run.
    """
    stderr = re.sub(
        r"^make(\[\d+\])?: \*\*\* Waiting for unfinished jobs\.{4}\n", "", ran.stderr, flags=re.MULTILINE
    )
    return attrs.evolve(ran, stderr=stderr)


def _age(release: str) -> tuple[list[int], int]:
    """Order releases from new to old; of one version, the plainest flavour first."""
    version = re.sub(r"(-[a-z][^-]*)+$", "", release)
    return [-int(number) for number in re.findall(r"\d+", version)], len(release)


def _find_runtime(environ: Mapping[str, str], modules: Path) -> Path:
    for candidate in (environ.get("STAPSRV_TEST_RUNTIME"), PATCHED_RUNTIME):
        if candidate is not None and Path(candidate, "runtime.h").exists():
            return Path(candidate)
    # The kernel renamed a function that the runtime of SystemTap 4.8 uses (see packaging/patch-runtime).
    headers = [modules / tree / "include/linux/task_work.h" for tree in ("build", "source")]
    new_name = "task_work_cancel_func"
    is_renamed = any(new_name in header.read_text() for header in headers if header.exists())
    if is_renamed and new_name not in (STOCK_RUNTIME / "stp_task_work.c").read_text():
        raise Unavailable(f"{PATCHED_RUNTIME}, the patched runtime, is missing; run packaging/setup")
    return STOCK_RUNTIME
