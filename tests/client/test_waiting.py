"""Steps performed with anyio, on both loops."""

from __future__ import annotations

import socket

import anyio
import pytest
from kit.compile_server import response

from stapsrv.client import waiting
from stapsrv.client.address import Address
from stapsrv.client.errors import ServerUnavailable
from stapsrv.client.exchange import exchange
from stapsrv.client.trust import Certificates

pytestmark = pytest.mark.anyio


async def send(server, **more):
    trust = Certificates.by_fingerprint(server.identity.fingerprint)
    with anyio.fail_after(60):
        return await waiting.run(exchange(Address.parse(server.address), b"request", trust, **more))


async def test_response_is_returned_after_a_retry(server, impatient):
    server.answer = response(x_ko=bytes(300_000))
    server.faults = ["reset"]
    assert await send(server) == server.answer
    assert server.requests == [b"request"]


async def test_failures_are_those_of_sockets(server, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr("stapsrv.client.exchange.CONNECT_S", 0.1)
        nobody = Certificates(frozenset(), "nobody")
        with pytest.raises(ServerUnavailable, match="no answer within"):
            await waiting.run(exchange(Address("127.0.0.1", port), b"", nobody))
    monkeypatch.undo()
    with pytest.raises(ServerUnavailable, match=f"^127.0.0.1:{port}: "):
        await waiting.run(exchange(Address("127.0.0.1", port), b"", nobody))
    server.faults = ["close"]
    with pytest.raises(ServerUnavailable, match="handshake failed"):
        await send(server)
    server.faults = ["hang"]
    with pytest.raises(ServerUnavailable, match="no response within"):
        await send(server, timeout_s=0.1)


async def test_cancellation_closes_the_connection(server):
    server.faults = ["hang"]
    sent = anyio.Event()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await send(server, on_stage=lambda stage: sent.set() if stage == "compiling" else None)

            tasks.start_soon(run)
            await sent.wait()
            tasks.cancel_scope.cancel()
    # The server's thread only comes back when the connection has ended.
    assert await send(server) == server.answer
