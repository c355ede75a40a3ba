"""Each bound of a server, met over real sockets: what the client sees, what is counted, what is logged."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import ssl
import struct
import tracemalloc

import anyio
import anyio.lowlevel
import attrs
import pytest
from anyio.abc import SocketStream
from anyio.streams.tls import TLSStream
from kit.client import (
    Answer,
    connect,
    exchange,
    frame,
    is_reset,
    read_answer,
    request,
    reset_at_once,
    trusting,
)
from kit.loops import every_loop
from kit.service import running_server

from stapsrv.compile.memory import MemoryBudget, RequestMemory
from stapsrv.errors import TranslatorError
from stapsrv.rejection import RejectReason

pytestmark = [pytest.mark.anyio, every_loop]

OTHER = "127.0.0.2"
"""Loopback is a whole network: a client of its own."""


def counted(running) -> dict[RejectReason, int]:
    refusals = running.server.work().refusals
    assert refusals.keys() == set(RejectReason)
    return {reject_reason: count for reject_reason, count in refusals.items() if count}


@contextlib.asynccontextmanager
async def held(running, number=1):
    """Keep connections open and say nothing on them."""
    with contextlib.ExitStack() as open_ones:
        before = running.lines.events().count("connection.accepted")
        for _ in range(number):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", running.port)))
        await running.lines.wait("connection.accepted", before + number)
        yield


async def test_too_many_connections_are_reset_and_logged_once():
    async with running_server(connections=2) as running:
        async with held(running, 2):
            for _ in range(20):
                assert await is_reset(running.port)
            assert counted(running) == {RejectReason.CONNECTIONS: 20}
            assert running.lines.reasons("connection.refused") == ["2 connections are open already"]
        await running.lines.wait("connection.failed", 1)
        await running.server.wait_idle()
        assert (await exchange(running.port, request("-p1"))).rc == 0
        running.server.stop()
        await running.ended.wait()
    (told,) = (entry for entry in running.lines.entries if entry["event"] == "log.suppressed")
    assert (told["kind"], told["suppressed"]) == ("connections", 19)


async def test_one_address_cannot_take_all_connections():
    async with running_server(connections_per_address=2) as running, held(running, 2):
        assert await is_reset(running.port)
        assert counted(running) == {RejectReason.ADDRESS_CONNECTIONS: 1}
        assert (await exchange(running.port, request("-p1"), source=OTHER)).rc == 0


async def test_all_servers_share_a_bound():
    async with running_server(most_connections=1) as running, held(running):
        assert await is_reset(running.port, source=OTHER)
        assert counted(running) == {RejectReason.TOTAL_CONNECTIONS: 1}


async def test_limits_are_released_when_connections_end():
    async with running_server(connections=1, most_connections=1, connections_per_address=1) as running:
        for _ in range(3):
            assert (await exchange(running.port, request("-p1"))).rc == 0
            await running.server.wait_idle()
    assert counted(running) == {}


async def test_a_full_queue_resets_before_the_handshake():
    async with running_server(max_threads=1, queue_length=1) as running, anyio.create_task_group() as tasks:
        running.engine.gate = anyio.Event()
        for name in "ab":
            tasks.start_soon(exchange, running.port, request("-p1", name))
        await running.lines.wait("request.overloaded")
        assert running.service.pool.is_full
        assert await is_reset(running.port)
        assert counted(running) == {RejectReason.QUEUE_LENGTH: 1}
        running.engine.gate.set()


async def test_a_draining_server_resets():
    async with running_server() as running:
        running.server.drain()
        assert await is_reset(running.port)
        assert counted(running) == {RejectReason.DRAINING: 1}


async def test_a_shortage_of_descriptors_is_one_line_in_the_log(monkeypatch):
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))] * 2
    accept = socket.socket.accept

    def accept_late(listener):
        if failures:
            raise failures.pop()
        return accept(listener)

    async with running_server() as running:
        monkeypatch.setattr(socket.socket, "accept", accept_late)
        assert (await exchange(running.port, request("-p1"))).rc == 0
        assert running.lines.reasons("listener.exhausted") == [os.strerror(errno.EMFILE)]


async def test_silent_clients_are_counted_and_logged_once():
    async with running_server(handshake_s=0.1) as running:
        for number in range(1, 4):
            with socket.create_connection(("127.0.0.1", running.port)):
                await running.lines.wait("connection.accepted", number)
                await running.server.wait_idle()
        assert counted(running) == {RejectReason.HANDSHAKE_TIMEOUT: 3}
        assert len(running.lines.reasons("connection.failed")) == 1


async def test_a_request_that_comes_too_slowly_is_counted():
    async with running_server(request_s=0.5) as running:
        tls = await connect(running.port)
        await tls.send(struct.pack(">I", 100) + b"half")
        await running.server.wait_idle()
        await anyio.aclose_forcefully(tls)
        assert counted(running) == {RejectReason.REQUEST_TIMEOUT: 1}


async def test_a_request_that_waits_too_long_is_told():
    async with running_server(max_threads=1, queue_s=0.1) as running, anyio.create_task_group() as tasks:
        running.engine.gate = anyio.Event()
        tasks.start_soon(exchange, running.port, request("-p1", "other"))
        await running.engine.wait(lambda: bool(running.engine.jobs))
        answer = await exchange(running.port, request("-p1"))
        assert (answer.rc, answer.stderr) == (
            1,
            "Server: The server is busy: no worker was free within 0.1 seconds; try again later\n",
        )
        assert counted(running) == {RejectReason.QUEUE_TIMEOUT: 1}
        running.engine.gate.set()


@pytest.mark.parametrize(
    "reject_reason", [RejectReason.COMPILE_TIMEOUT, RejectReason.OUTPUT_SIZE, RejectReason.ANSWER_SIZE]
)
async def test_a_compile_that_is_ended_is_told_counted_and_logged_now_and_then(reject_reason):
    async with running_server() as running:
        running.engine.fault = TranslatorError(
            "The compile was ended: it was too much", reject_reason=reject_reason
        )
        for _ in range(3):
            answer = await exchange(running.port, request("-p1"))
            assert (answer.rc, answer.stderr) == (1, "Server: The compile was ended: it was too much\n")
        assert counted(running) == {reject_reason: 3}
        assert len(running.lines.reasons("request.rejected")) == 1
        await running.lines.wait("request.summary", 3)


@pytest.mark.parametrize("payload", [bytes(6000), request("x" * 60_000)], ids=["as sent", "uncompressed"])
async def test_a_request_that_is_too_large_is_counted(payload):
    async with running_server() as running:
        assert (await exchange(running.port, payload)).rc == 1
        assert counted(running) == {RejectReason.REQUEST_SIZE: 1}


async def test_faults_that_are_no_refusals_are_all_logged_and_not_counted():
    async with running_server() as running:
        for _ in range(3):
            assert (await exchange(running.port, b"no zip")).rc == 1
        assert counted(running) == {}
        assert len(running.lines.reasons("request.rejected")) == 3


async def test_client_that_takes_no_answer_is_counted():
    async with running_server(send_s=0.2) as running:
        running.engine.module = os.urandom(16 * 1024 * 1024)
        tls = await connect(running.port)
        await tls.send(frame(request("-p1")))
        await running.lines.wait("connection.failed")
        await anyio.aclose_forcefully(tls)
        assert counted(running) == {RejectReason.SEND_TIMEOUT: 1}


async def test_an_address_that_floods_delays_another_by_what_runs_and_no_more():
    async with running_server(max_threads=1) as running, anyio.create_task_group() as tasks:
        engine = running.engine
        engine.gate = running_gate = anyio.Event()
        for number in range(20):
            flood = request("-p1", f"flood{number}")
            tasks.start_soon(functools.partial(exchange, running.port, flood, source=OTHER))
        await running.lines.wait("request.overloaded", 19)
        tasks.start_soon(exchange, running.port, request("-p1", "single"))
        await running.lines.wait("request.overloaded", 20)
        engine.gate = anyio.Event()
        running_gate.set()
        await engine.wait(lambda: len(engine.jobs) == 2)
        assert engine.jobs[1].request.arguments[1] == b"single"
        engine.gate.set()


async def test_denied_client_gets_a_tls_alert():
    async with running_server(deny=("127.0.0.2/32",)) as running:
        for _ in range(3):
            with pytest.raises(ssl.SSLError) as caught:
                await connect(running.port, source=OTHER)
            assert caught.value.reason == "TLSV1_ALERT_ACCESS_DENIED"
        assert (await exchange(running.port, request("-p1"))).rc == 0
        assert counted(running) == {RejectReason.DENIED: 3}
        assert running.lines.events().count("connection.denied") == 1
        assert running.lines.events().count("connection.accepted") == 1


async def test_denied_client_that_resets_at_once_ends_nothing():
    async with running_server(deny=("127.0.0.2/32",)) as running:
        async with held(running):
            reset_at_once(running.port, source=OTHER)
            assert (await exchange(running.port, request("-p1"))).rc == 0
            assert counted(running) == {RejectReason.DENIED: 1}
        assert (await exchange(running.port, request("-p1"))).rc == 0
        assert not running.ended.is_set()


async def test_denied_clients_beyond_the_limit_are_reset():
    async with running_server(allow=("none",)) as running:
        with contextlib.ExitStack() as silent:
            for _ in range(64):
                silent.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            with anyio.fail_after(60):
                while not await is_reset(running.port):
                    pass


async def test_networks_change_while_a_server_serves():
    async with running_server() as running:
        settings = running.service.settings
        running.server.apply_settings(attrs.evolve(settings, tuning={"allow": ("127.0.0.2/32",)}))
        with pytest.raises(ssl.SSLError):
            await connect(running.port)
        assert (await exchange(running.port, request("-p1"), source=OTHER)).rc == 0


@contextlib.asynccontextmanager
async def answer_under_way(running):
    """A client that has read nothing of an answer of 16 MB, which the server is sending."""
    running.engine.module = bytes(16 * 1024 * 1024)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(("127.0.0.1", running.port))
        client.setblocking(False)
        stream = await SocketStream.from_socket(client.dup())
        tls = await TLSStream.wrap(
            stream, server_side=False, ssl_context=trusting(), standard_compatible=False
        )
        await tls.send(frame(request("-p1")))
        with anyio.fail_after(60):
            while running.service.counts.done < 1:
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        yield tls
        await anyio.aclose_forcefully(tls)


async def test_answer_that_is_under_way_at_the_end_is_sent_to_its_end(monkeypatch):
    """On a busy host that takes longer than it should."""
    monkeypatch.setattr("stapsrv.supervisor.server.compile_server._SENDING_S", 60)
    async with running_server(drain_s=0.0) as running, answer_under_way(running) as tls:
        running.server.stop()
        await running.lines.wait("server.draining")
        await anyio.wait_all_tasks_blocked()
        answer = Answer.of(await read_answer(tls))
        assert answer.files == {"stap_x.ko": running.engine.module}
        await running.ended.wait()
    assert "request.complete" in running.lines.events()


async def test_end_waits_a_bounded_time_for_an_answer_that_nobody_reads(monkeypatch):
    monkeypatch.setattr("stapsrv.supervisor.server.compile_server._SENDING_S", 0.2)
    async with running_server(drain_s=0.0, send_s=600) as running, answer_under_way(running):
        running.server.stop()
        with anyio.fail_after(60):
            await running.ended.wait()
    (line,) = (entry for entry in running.lines.entries if entry["event"] == "request.summary")
    assert line["outcome"] == "abandoned"


@contextlib.asynccontextmanager
async def reading_nothing(running, arguments, number=1):
    """Clients that ask the same, and read nothing of the answer."""
    async with contextlib.AsyncExitStack() as clients:
        for _ in range(number):
            client = clients.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(("127.0.0.1", running.port))
            client.setblocking(False)
            stream = await SocketStream.from_socket(client.dup())
            tls = await TLSStream.wrap(
                stream, server_side=False, ssl_context=trusting(), standard_compatible=False
            )
            clients.push_async_callback(anyio.aclose_forcefully, tls)
            await tls.send(frame(request(*arguments)))
        yield


async def until(condition):
    with anyio.fail_after(30):
        while not condition():
            await anyio.lowlevel.checkpoint()


ANSWER = 8 * 1024 * 1024
"""More than the kernel takes of an answer that nobody reads."""


async def test_answers_that_nobody_reads_stay_within_the_memory_for_all():
    """Two results fit, since each counts twice; the third waits until one of their clients has gone."""
    memory = RequestMemory.of(2 * 5 * ANSWER)
    async with running_server(memory=memory, send_s=600) as running, contextlib.AsyncExitStack() as held:
        running.engine.module = bytes(ANSWER)
        for number in range(2):
            await held.enter_async_context(reading_nothing(running, [f"-p{number}"]))
        await until(lambda: running.service.counts.done == 2)
        # Of another address: that client holds nothing, and is next.
        async with anyio.create_task_group() as tasks:
            answers = []

            async def ask() -> None:
                answers.append(await exchange(running.port, request("-p4"), source=OTHER))

            tasks.start_soon(ask)
            await until(lambda: len(running.engine.jobs) == 3)
            await anyio.wait_all_tasks_blocked()
            assert answers == []
            assert 4 * ANSWER < memory.answers.held_bytes <= 5 * ANSWER
            await held.aclose()
        assert answers[0].rc == 0
        await until(lambda: not memory.answers.held_bytes and not memory.requests.held_bytes)


async def test_clients_that_are_sent_one_result_share_its_memory():
    """Sixteen of them cost less than three copies of it; each of its blocks is copied only to be sent."""
    memory = RequestMemory.of(2 * (2 * ANSWER + 4096))
    tracemalloc.start()
    try:
        async with running_server(memory=memory, send_s=600) as running:
            running.engine.gate = anyio.Event()
            async with reading_nothing(running, ["-p4"], 16):
                await until(lambda: running.engine.jobs)
                (flight,) = running.service.engine._single_flight._flights.values()
                await until(lambda: flight.waiting == 16)
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                running.engine.module = os.urandom(ANSWER)
                running.engine.gate.set()
                await until(lambda: running.service.counts.done == 16)
                await anyio.wait_all_tasks_blocked()
                assert tracemalloc.get_traced_memory()[1] - before < 3 * ANSWER
                assert memory.answers.held_bytes > 2 * ANSWER
    finally:
        tracemalloc.stop()


async def test_request_that_finds_no_memory_is_told():
    memory = RequestMemory.of(2 * 60_000)
    async with running_server(memory=memory, request_s=1.0) as running:
        release = await memory.requests.claim("another", 60_000, wait_s=1)
        answer = await exchange(running.port, request("-p1"))
        assert (answer.rc, answer.stderr) == (
            1,
            "Server: The server is busy: no memory was free within 0.5 seconds; try again later\n",
        )
        release()
        assert (await exchange(running.port, request("-p1"))).rc == 0
        assert counted(running) == {RejectReason.MEMORY: 1}
    assert memory.requests.held_bytes == 0


async def test_answer_that_finds_no_memory_is_told_and_nothing_is_left():
    memory = RequestMemory(MemoryBudget(1 << 20), MemoryBudget(10_000))
    async with running_server(memory=memory, queue_s=0.1) as running:
        release = await memory.answers.claim("another", 10_000, wait_s=1)
        answer = await exchange(running.port, request("-p1"))
        assert answer.stderr.startswith("Server: The server is busy: no memory was free within 0.1 seconds")
        assert running.engine.released == 1
        release()
    assert memory.answers.held_bytes == 0
