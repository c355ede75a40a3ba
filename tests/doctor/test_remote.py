"""``stap-server doctor --client``: a client's way, and each place where it can end."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import anyio
import pytest
from kit.client import RELEASE
from kit.service import IDENTITY, running_server
from kit.stap import make_versioned_stap

from stapsrv.doctor.findings import Verdict
from stapsrv.doctor.remote import Destination, check_remote

pytestmark = pytest.mark.anyio


@pytest.fixture
def environ(tmp_path):
    """With a stap of the version that the kit's servers have."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SYSTEMTAP_DIR": str(tmp_path / "systemtap"),
        "SYSTEMTAP_STAP": str(make_versioned_stap(tmp_path / "stap", "4.8")),
    }


async def go(port: int, environ, *, host: str = "localhost", release: str = RELEASE):
    with anyio.fail_after(60):
        return {
            found.question: found async for found in check_remote(Destination(host, port, release), environ)
        }


async def test_good_server_passes_every_check(environ):
    async with running_server() as running:
        found = await go(running.port, environ)
    assert [question for question, finding in found.items() if finding.verdict is not Verdict.OK] == ["trust"]
    assert found["TLS"].answer.startswith("TLSv1.3")
    assert found["host name"].answer == "localhost"
    assert found["trust"].remedy == f"stap --trust-servers=ssl --use-server=localhost:{running.port}"
    assert found[f"kernel {RELEASE}"].answer == "is served"
    (job,) = running.engine.jobs
    assert job.request.arguments[0] == b"-p1"


@pytest.mark.parametrize(
    ("version", "prefix"), [("4.9", ""), ("5.1", "NSS_DISABLE_PKIX_VERIFY=1 "), ("5.2", "")]
)
async def test_remedy_for_trust_works_with_the_stap_that_is_here(environ, tmp_path, version, prefix):
    make_versioned_stap(tmp_path / "stap", version)
    async with running_server() as running:
        found = await go(running.port, environ)
    command = f"stap --trust-servers=ssl --use-server=localhost:{running.port}"
    assert found["trust"].remedy == prefix + command


async def test_name_missing_from_the_certificate_is_a_warning(environ):
    async with running_server() as running:
        assert (await go(running.port, environ, host="127.0.0.1"))["host name"].verdict is Verdict.OK
        found = await go(running.port, environ, host="ip6-localhost")
    assert found.get("host name", found["address"]).verdict is not Verdict.OK


async def test_kernel_that_is_not_served_is_a_failure(environ):
    async with running_server() as running:
        found = await go(running.port, environ, release="9.9")
    assert found["kernel 9.9"].verdict is Verdict.FAILURE
    assert f"which serves {RELEASE} x86_64" in found["kernel 9.9"].answer


async def test_refused_connection_is_a_failure(environ):
    async with running_server() as running:
        running.server.drain()
        found = await go(running.port, environ)
    # The reset may be there before the connection is known to be one.
    assert [finding.verdict for finding in found.values()][-1] is Verdict.FAILURE
    assert list(found)[-1] in {"connection", "conversation"}


async def test_missing_server_and_unknown_host_are_failures(environ):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = await go(port, environ, host="127.0.0.1")
    assert found["connection"].answer == f"127.0.0.1:{port}: Connection refused"
    found = await go(port, environ, host="no-such-host.invalid")
    assert found["address"].verdict is Verdict.FAILURE
    found = await go(port, environ, host="x" * 100)
    assert found["address"].answer == f"{'x' * 100}: is no host name"


async def test_silent_resolver_is_a_failure(environ, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_arguments, **_names: answered.wait())
    monkeypatch.setattr("stapsrv.doctor.remote.CONNECT_S", 0.2)
    try:
        found = await go(5001, environ, host="slow.example.org")
    finally:
        answered.set()
    assert found["address"].answer == "slow.example.org: no answer within 0.2 seconds"


async def test_other_service_is_a_failure(environ):
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def greet(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.BrokenResourceError):
                await stream.send(b"220 mail.example.org ESMTP\r\n" * 10)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, greet)
        found = await go(port, environ, host="127.0.0.1")
        tasks.cancel_scope.cancel()
    assert found["conversation"].verdict is Verdict.FAILURE


@pytest.mark.parametrize(
    ("version", "verdict"), [("4.9", Verdict.WARNING), ("4.8", Verdict.OK), ("5.0", Verdict.FAILURE)]
)
async def test_versions_on_both_sides_of_5_0_do_not_fit(environ, tmp_path, version, verdict):
    make_versioned_stap(tmp_path / "stap", version)
    async with running_server() as running:
        found = await go(running.port, environ)
    assert found["version"].verdict is verdict
    assert f"4.8, {version} here: this staprun" in found["version"].answer or verdict is not Verdict.FAILURE


async def test_missing_stap_is_a_failure(environ):
    async with running_server() as running:
        found = await go(running.port, {**environ, "SYSTEMTAP_STAP": "/nowhere/stap"})
    assert "there is no stap here" in found["version"].answer


def test_certificate_of_the_kit_is_valid_long():
    assert IDENTITY.not_after.year == 2100
