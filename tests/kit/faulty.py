"""A daemon whose stap does what each request says, and clients for it that block: for faults."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from .client import RELEASE, Answer, frame, request, trusting
from .daemon import PROGRAM, ServerProcess, start
from .footprint import Footprint, wait_back
from .real import FollowedLog
from .stap import OBEDIENT, make_stap

ANSWER_S = 60.0


def connect(port: int, *, source: str | None = None, timeout: float = ANSWER_S) -> ssl.SSLSocket:
    """Connect over TLS; ``source`` is the address that the server sees."""
    origin = None if source is None else (source, 0)
    raw = socket.create_connection(("127.0.0.1", port), timeout=timeout, source_address=origin)
    try:
        return trusting().wrap_socket(raw)
    except BaseException:
        raw.close()
        raise


def send(
    port: int,
    script: str,
    *,
    release: str = RELEASE,
    source: str | None = None,
    timeout: float = ANSWER_S,
) -> ssl.SSLSocket:
    """Send a request for what the stand-in is to do; :func:`receive` takes the answer."""
    tls = connect(port, source=source, timeout=timeout)
    try:
        tls.sendall(frame(request("-e", script, release=release)))
    except BaseException:
        tls.close()
        raise
    return tls


def receive(tls: ssl.SSLSocket) -> Answer:
    """Take an answer, and close."""
    with tls:
        data = bytearray()
        while chunk := tls.recv(1 << 16):
            data += chunk
    return Answer.of(bytes(data))


def ask(
    port: int, script: str, *, release: str = RELEASE, source: str | None = None, timeout: float = ANSWER_S
) -> Answer:
    return receive(send(port, script, release=release, source=source, timeout=timeout))


@attrs.frozen
class FaultyServer:
    """A daemon that serves one release with the obedient stand-in.

    Attributes:
        process: the daemon.
        port: where it serves.
        temporary: its TMPDIR.
        log: its log file.
        quiet: what it held before the first request.
    """

    process: ServerProcess
    port: int
    temporary: Path
    log: Path
    quiet: Footprint

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, script: str) -> Answer:
        return ask(self.port, script)

    def send(self, script: str) -> ssl.SSLSocket:
        return send(self.port, script)

    def left_over(self, *, threads: int = 0) -> list[str]:
        """Return what it still holds of what came after the beginning, after a while of waiting."""
        return wait_back(
            lambda: Footprint.of(self.pid, self.temporary).differences(self.quiet, threads=threads)
        )

    def log_text(self) -> str:
        """Return its log, which may be in a mount namespace of its own as long as it lives."""
        inside = Path(f"/proc/{self.pid}/root{self.log}")
        return (inside if inside.exists() else self.log).read_text()

    def wait_log(self, pattern: str) -> None:
        """Wait until a line of its log matches."""
        with FollowedLog.open(self.log, self.pid) as log:
            log.wait(pattern)

    def log_lines(self) -> list[str]:
        return [line[26:] for line in self.log_text().splitlines()]


def environment(place: Path, temporary: Path) -> dict[str, str]:
    """Return the environment of a daemon that uses nothing of its user's."""
    return os.environ | {
        "SYSTEMTAP_DIR": str(place / "systemtap"),
        "SYSTEMTAP_STAP": str(make_stap(place / "stap", OBEDIENT)),
        "STAP_PR11197_OVERRIDE": "1",
        "TMPDIR": str(temporary),
    }


@contextlib.contextmanager
def faulty_server(
    place: Path,
    build_tree: Path,
    identity: Path,
    *options: object,
    temporary: Path | None = None,
    log: Path | None = None,
    backend: str = "asyncio",
    program: Sequence[str] = PROGRAM,
    patch: str = "",
    **environ: str,
) -> Iterator[FaultyServer]:
    """Serve ``build_tree`` until the block ends; then the daemon is killed if it runs still.

    Args:
        place: a directory of the test's own.
        build_tree: of release ``6.1.0-test``.
        identity: the certificate database.
        options: further ones.
        temporary: its TMPDIR, else one is made in ``place``.
        log: its log file, else one in ``place``.
        backend: of its event loop.
        program: what it is started with.
        patch: Python that is run in the daemon before it begins.
        environ: further variables.
    """
    if temporary is None:
        temporary = place / "tmp"
        temporary.mkdir()
    log = log or place / "log"
    arguments = ("-r", build_tree, "--ssl", identity, "--log", log, "--backend", backend, *options)
    if patch:
        program = (sys.executable, "-c", f"{patch}\nfrom stapsrv.daemon import main; main()")
    with start(arguments, environment(place, temporary) | environ, program=program) as process:
        yield FaultyServer(process, process.port, temporary, log, Footprint.of(process.pid, temporary))
