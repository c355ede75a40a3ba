"""With the real stap-serverd and the real client: each side takes what the other one made."""

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
import pytest
from anyio.abc import Process, SocketAttribute, SocketStream
from anyio.streams.text import TextReceiveStream
from anyio.streams.tls import TLSAttribute, TLSStream

from stapsrv.config.kernels import installed_releases
from stapsrv.identity.certificate import NICKNAME, Identity, default_directory, load_or_create_identity
from stapsrv.identity.nss import DATABASE_FILES, Database
from stapsrv.identity.trust import authorize, default_client_directory

from .conftest import Log, contents, modes

SERVER = Path("/usr/lib/systemtap/stap-serverd")
PORTS = range(7100, 7200)
DEADLINE_S = 30

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("stap") is None, reason="stap is not installed"),
]
with_server = [
    pytest.mark.skipif(not SERVER.exists(), reason=f"{SERVER} is not installed"),
    pytest.mark.skipif(not installed_releases(), reason="no kernel headers to serve"),
    pytest.mark.skipif(os.geteuid() == 0, reason="the real stap-serverd refuses to run as root"),
]


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
        self, environ: Mapping[str, str], made: Identity, log: Log
    ):
        directory, client = default_directory(environ), default_client_directory(environ)
        async with real_server(environ) as (port, _logged):
            shown = await shown_certificate(port)

        before = contents(directory)
        theirs = await load_or_create_identity(directory, log=log.logger)
        assert theirs.der == shown
        assert log.events[-1] == "identity.valid"
        assert contents(directory) == before
        theirs.tls_context()

        await authorize(made.certificate, client, log=log.logger)
        trusted = await Database(client).certificates(NICKNAME)
        assert len(trusted) == 2
        assert made.certificate in trusted
        assert theirs.certificate in trusted
        assert all(modes(client)[name] == 0o644 for name in DATABASE_FILES)

    async def test_systemtap_s_server_uses_our_identity(self, environ: Mapping[str, str], made: Identity):
        directory = shutil.copytree(made.directory, default_directory(environ))
        before = contents(directory)
        async with real_server(environ) as (port, logged):
            assert await shown_certificate(port) == made.der
        assert any(line.endswith("Certificate is valid") for line in logged)
        assert contents(directory) == before


class TestClient:
    async def test_client_sends_its_request_to_a_trusted_server(
        self, environ: Mapping[str, str], made: Identity, log: Log
    ):
        await authorize(made.certificate, default_client_directory(environ), log=log.logger)
        received = await offer(made, environ)
        # The length of the request, then a zip file.
        assert received[4:8] == b"PK\x03\x04"

    async def test_client_sends_nothing_to_another_server(
        self, environ: Mapping[str, str], made: Identity, another: Identity, log: Log
    ):
        await authorize(another.certificate, default_client_directory(environ), log=log.logger)
        received = await offer(made, environ)
        assert received == b""

    async def test_client_knows_our_serial_number(self, environ: Mapping[str, str], made: Identity, log: Log):
        await authorize(made.certificate, default_client_directory(environ), log=log.logger)
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
                stream, server_side=True, ssl_context=identity.tls_context(), standard_compatible=False
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
