"""Certificates shared with SystemTap's own server and client: each side takes what the other made."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, STDOUT

import anyio
import anyio.to_thread
import pytest
from anyio.abc import Process, SocketAttribute, SocketStream
from anyio.streams.text import TextReceiveStream
from anyio.streams.tls import TLSAttribute, TLSStream
from kit.service import LogLines

from stapsrv.config.kernels import installed_releases
from stapsrv.identity.certificate import NICKNAME, Identity, default_directory, load_or_create_identity
from stapsrv.identity.nss import DATABASE_FILES, Database
from stapsrv.identity.trust import authorize, default_client_directory

SERVER = Path("/usr/lib/systemtap/stap-serverd")
PORTS = range(7100, 7200)
DEADLINE_S = 30

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("stap") is None, reason="stap is not installed"),
]
with_server = [
    pytest.mark.skipif(not SERVER.exists(), reason=f"{SERVER} is not installed"),
    pytest.mark.skipif(not installed_releases(), reason="no kernel headers to serve"),
    pytest.mark.skipif(os.geteuid() == 0, reason="the real stap-serverd refuses to run as root"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """An identity in a directory that no test may change."""
    return make(tmp_path_factory.mktemp("made") / "server")


@pytest.fixture
def lines() -> LogLines:
    return LogLines()


def make(directory: Path) -> Identity:
    return anyio.run(lambda: load_or_create_identity(directory, log=LogLines().log))


def contents(directory: Path) -> dict[str, bytes]:
    """Everything in a directory but the lock."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    """An environment in which SystemTap keeps its data to the test's directory."""
    return {**os.environ, "SYSTEMTAP_DIR": str(tmp_path)}


def free_port() -> int:
    for port in PORTS:
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::", port))
            except OSError:
                continue
            return port
    pytest.skip(f"no free port in {PORTS}")


@asynccontextmanager
async def real_server(environ: Mapping[str, str]) -> AsyncIterator[tuple[int, list[str]]]:
    """Run the real stap-serverd until the block ends; give its port and what it logged until it listened."""
    port = free_port()
    command = [str(SERVER), "-r", installed_releases()[0], f"--port={port}"]
    async with await anyio.open_process(command, env=environ, stdout=DEVNULL, stdin=DEVNULL) as process:
        try:
            yield port, (await lines_until_listening(process)).splitlines()
        finally:
            process.terminate()


async def lines_until_listening(server: Process) -> str:
    assert server.stderr is not None
    logged = ""
    with anyio.fail_after(DEADLINE_S):
        async for text in TextReceiveStream(server.stderr):
            logged += text
            if "avahi" in logged.lower():
                return logged
    pytest.fail(f"stap-serverd ended:\n{logged}")


async def shown_certificate(port: int) -> bytes | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with anyio.fail_after(DEADLINE_S):
        stream = await anyio.connect_tcp(
            "::1", port, tls=True, ssl_context=context, tls_standard_compatible=False
        )
        async with stream:
            return stream.extra(TLSAttribute.peer_certificate_binary)


class TestServer:
    pytestmark = with_server

    async def test_identity_of_systemtap_s_server_is_loaded(
        self, environ: Mapping[str, str], made: Identity, lines: LogLines
    ):
        directory, client = default_directory(environ), default_client_directory(environ)
        async with real_server(environ) as (port, _logged):
            shown = await shown_certificate(port)

        before = contents(directory)
        theirs = await load_or_create_identity(directory, log=lines.log)
        assert theirs.der == shown
        assert lines.events()[-1] == "identity.valid"
        assert contents(directory) == before
        assert theirs.context.num_tickets == 1

        await authorize(made.certificate, client, log=lines.log)
        trusted = await Database(client).certificates(NICKNAME)
        assert len(trusted) == 2
        assert made.certificate in trusted
        assert theirs.certificate in trusted
        assert all((client / name).stat().st_mode & 0o777 == 0o644 for name in DATABASE_FILES)

    async def test_systemtap_s_server_uses_our_identity(self, environ: Mapping[str, str], made: Identity):
        directory = shutil.copytree(made.directory, default_directory(environ))
        before = contents(directory)
        async with real_server(environ) as (port, logged):
            assert await shown_certificate(port) == made.der
        assert any(line.endswith("Certificate is valid") for line in logged)
        assert contents(directory) == before


class TestClient:
    async def test_client_sends_its_request_to_a_trusted_server(
        self, environ: Mapping[str, str], made: Identity, lines: LogLines
    ):
        await authorize(made.certificate, default_client_directory(environ), log=lines.log)
        received = await offer(made, environ)
        # The length of the request, then a zip file.
        assert received[4:8] == b"PK\x03\x04"

    async def test_client_sends_nothing_to_another_server(
        self, environ: Mapping[str, str], made: Identity, lines: LogLines, tmp_path: Path
    ):
        another = await anyio.to_thread.run_sync(make, tmp_path / "another")
        await authorize(another.certificate, default_client_directory(environ), log=lines.log)
        received = await offer(made, environ)
        assert received == b""

    async def test_client_knows_our_serial_number(
        self, environ: Mapping[str, str], made: Identity, lines: LogLines
    ):
        await authorize(made.certificate, default_client_directory(environ), log=lines.log)
        with anyio.fail_after(DEADLINE_S):
            done = await anyio.run_process(
                ["stap", "--list-servers=trusted,all"], env=environ, stdin=DEVNULL, stderr=STDOUT, check=False
            )
        assert f'certinfo="{made.serial}"' in done.stdout.decode()


async def offer(identity: Identity, environ: Mapping[str, str]) -> bytes:
    """Let the real client meet a server with this identity; return what it sent first."""
    received = b""

    async def meet(stream: SocketStream) -> None:
        nonlocal received
        try:
            tls = await TLSStream.wrap(
                stream, server_side=True, ssl_context=identity.context, standard_compatible=False
            )
            async with tls:
                while len(received) < 8:
                    received += await tls.receive()
        except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream):
            await stream.aclose()

    with anyio.fail_after(DEADLINE_S):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, meet)
            port = listener.extra(SocketAttribute.local_port)
            command = ["stap", f"--use-server=127.0.0.1:{port}", "-p1", "-e", "probe begin { exit() }"]
            await anyio.run_process(command, env=environ, stdin=DEVNULL, check=False)
            tasks.cancel_scope.cancel()
    return received
