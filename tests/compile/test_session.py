"""A connection's story over real TLS: what is answered, what each deadline does, what is given back."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import warnings

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream
from kit.client import RELEASE, Answer, connect, exchange, frame, pack, read_answer, request, trusting
from kit.service import running_server

from stapsrv.errors import TranslatorError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_request_is_answered_and_closed(version):
    async with running_server() as running:
        context = trusting(minimum_version=version, maximum_version=version)
        async with await connect(running.port, context) as tls:
            await tls.send(frame(request("-p4", "-e", "probe begin {}")))
            answer = Answer.of(await read_answer(tls))
        await running.lines.wait("request.complete")
    assert (answer.rc, answer.stdout, answer.stderr) == (0, "out\n", "err\n")
    assert answer.entries["version"] == b"4.8"
    assert answer.files == {"stap_x.ko": b"module" * 1000}
    (job,) = running.engine.jobs
    assert job.request.arguments == (b"-p4", b"-e", b"probe begin {}")
    assert running.lines.events() == [
        "server.listening",
        "server.threads",
        "connection.accepted",
        "request.version",
        "request.options",
        "request.one",
        "request.complete",
    ]


async def test_request_may_arrive_byte_by_byte():
    async with running_server() as running, await connect(running.port) as tls:
        for byte in frame(request("-p1")):
            await tls.send(bytes([byte]))
        assert Answer.of(await read_answer(tls)).rc == 0


async def test_certificate_visit_is_no_error():
    async with running_server() as running:
        async with await connect(running.port) as tls:
            await tls.send(struct.pack(">I", 0))
            assert await read_answer(tls) == b""
    assert "connection.failed" not in running.lines.events()
    assert running.service.counts.accepted == 0


async def test_locale_messages_come_before_stap_s_own():
    async with running_server() as running:
        answer = await exchange(running.port, request("-p1", locale="LANG=C\nBAD=1\n"))
    assert answer.stderr == "Server: Localization key 'BAD' not found in global list\nerr\n"
    assert running.engine.jobs[0].request.environment == (("LANG", "C"),)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (
            request("-p1", release="9.9"),
            f"Server: Target kernel version 9.9 x86_64 is not supported by this server, "
            f"which serves {RELEASE} x86_64\n",
        ),
        (
            pack([("version", "4.8"), ("sysinfo", f"sysinfo: {RELEASE} aarch64")]),
            "not supported by this server",
        ),
        (pack([("version", "4.8")]), "sysinfo"),
        (pack([("sysinfo", f"sysinfo: {RELEASE} x86_64"), ("argv2", "x")]), "argv1"),
        (b"this is no zip", "Server: "),
        (request("-p1", **{"../evil": "x"}), "Server: "),
        (request("x" * 60_000), "is not within the expected range of 1 to 50000 bytes."),
    ],
    ids=["release", "arch", "no-sysinfo", "gap", "no-zip", "traversal", "too-large"],
)
async def test_bad_requests_are_told_why_and_the_server_serves_on(payload, text):
    async with running_server() as running:
        answer = await exchange(running.port, payload)
        assert (answer.rc, answer.stdout) == (1, "")
        assert text in answer.stderr
        assert answer.stderr.startswith("Server: ")
        assert (await exchange(running.port, request("-p1"))).rc == 0
        assert len(running.engine.jobs) == 1
    assert running.lines.reasons("request.rejected")


async def test_frame_too_large_is_told_its_size_although_it_was_sent_whole():
    async with running_server() as running:
        async with await connect(running.port) as tls:
            await tls.send(frame(bytes(1_000_000)))
            answer = Answer.of(await read_answer(tls))
    assert "Error size of (compressed) request file is too large" in answer.stderr
    assert "1000000" in answer.stderr
    assert "--max-compressed-request" in answer.stderr


async def test_translator_trouble_is_told():
    async with running_server() as running:
        running.engine.fault = TranslatorError("The compile was ended: it took longer than 3 seconds")
        answer = await exchange(running.port, request("-p1"))
        assert (answer.rc, answer.stderr) == (
            1,
            "Server: The compile was ended: it took longer than 3 seconds\n",
        )
        assert running.service.pool.statistics().running == 0


async def test_a_crash_ends_one_connection_alone():
    async with running_server() as running:
        running.engine.fault = ZeroDivisionError("a fault of this program")
        async with await connect(running.port) as tls:
            await tls.send(frame(request("-p1")))
            assert await read_answer(tls) == b""
        running.engine.fault = None
        assert (await exchange(running.port, request("-p1"))).rc == 0
        assert running.service.pool.statistics().running == 0
    assert running.lines.events().count("connection.crashed") == 1


async def test_silent_peers_cost_no_worker():
    async with running_server(max_threads=1, handshake_s=30, request_s=30) as running:
        silent = [await anyio.connect_tcp("127.0.0.1", running.port) for _ in range(5)]
        mute = [await connect(running.port) for _ in range(5)]
        assert (await exchange(running.port, request("-p1"))).rc == 0
        for stream in (*silent, *mute):
            await anyio.aclose_forcefully(stream)


async def test_handshake_has_a_deadline():
    async with running_server(handshake_s=0.2) as running:
        async with await anyio.connect_tcp("127.0.0.1", running.port) as silent:
            with pytest.raises(anyio.EndOfStream):
                await silent.receive()
    assert running.lines.reasons("connection.failed") == ["no TLS handshake within 0.2 seconds"]


async def test_arrival_has_a_deadline():
    async with running_server(request_s=0.2) as running:
        async with await connect(running.port) as slow:
            await slow.send(frame(request("-p1"))[:-1])
            assert await read_answer(slow) == b""
    assert running.lines.reasons("connection.failed") == [
        "the request did not arrive whole within 0.2 seconds"
    ]


async def test_sending_has_a_deadline():
    async with running_server(send_s=0.3) as running:
        running.engine.gate = anyio.Event()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(("127.0.0.1", running.port))
            client.setblocking(False)
            stream = await SocketStream.from_socket(client.dup())
            tls = await TLSStream.wrap(stream, server_side=False, ssl_context=trusting())
            await tls.send(frame(request("-p1")))
            await running.engine.wait(lambda: running.engine.jobs)
            # More than all buffers between the two hold, and the client never reads.
            running.engine.module = os.urandom(16 * 1024 * 1024)
            running.engine.gate.set()
            await running.lines.wait("connection.failed")
            await anyio.aclose_forcefully(stream)
    assert running.lines.reasons("connection.failed") == [
        "the client did not take its answer within 0.3 seconds"
    ]


async def test_queue_has_a_deadline():
    async with running_server(max_threads=1, queue_s=0.2) as running:
        running.engine.gate = anyio.Event()
        async with await connect(running.port) as first:
            await first.send(frame(request("-p1")))
            await running.engine.wait(lambda: running.engine.jobs)
            answer = await exchange(running.port, request("-p1"))
            assert answer.stderr == (
                "Server: The server is busy: no worker was free within 0.2 seconds; try again later\n"
            )
            running.engine.gate.set()
            assert Answer.of(await read_answer(first)).rc == 0
    assert "request.overloaded" in running.lines.events()


@pytest.mark.parametrize("manner", ["close_notify", "fin", "reset", "chatter"])
async def test_client_that_leaves_takes_its_compile_along(manner):
    async with running_server(max_threads=1) as running:
        running.engine.gate = anyio.Event()
        tls = await connect(running.port)
        await tls.send(frame(request("-p1")))
        await running.engine.wait(lambda: running.engine.jobs)
        raw = tls.extra(SocketAttribute.raw_socket)
        if manner == "close_notify":
            with anyio.move_on_after(0):
                await tls.unwrap()
        elif manner == "chatter":
            await tls.send(b"more")
        elif manner == "reset":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if manner != "chatter":
            await anyio.aclose_forcefully(tls)
        await running.engine.wait(lambda: running.engine.cancelled)
        await running.lines.wait("request.abandoned")
        await anyio.aclose_forcefully(tls)
        running.engine.gate = None
        assert (await exchange(running.port, request("-p1"))).rc == 0


async def test_client_that_leaves_the_queue_leaves_its_place():
    async with running_server(max_threads=1) as running:
        running.engine.gate = anyio.Event()
        async with await connect(running.port) as first:
            await first.send(frame(request("-p1")))
            await running.engine.wait(lambda: running.engine.jobs)
            second = await connect(running.port)
            await second.send(frame(request("-p1")))
            await running.lines.wait("request.overloaded")
            await anyio.aclose_forcefully(second)
            await running.lines.wait("request.abandoned")
            assert running.service.pool.statistics().queued == 0
            running.engine.gate.set()
            assert Answer.of(await read_answer(first)).rc == 0


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 100])
async def test_request_cut_short(cut):
    async with running_server() as running:
        async with await connect(running.port) as tls:
            await tls.send(frame(request("-p1"))[:cut])
        await running.lines.wait("connection.failed")
    assert running.engine.jobs == []


async def test_port_scans_are_quiet():
    async with running_server() as running:
        for greeting in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01"):
            async with await anyio.connect_tcp("127.0.0.1", running.port) as scanner:
                if greeting:
                    await scanner.send(greeting)
        await running.lines.wait("connection.failed", 3)
        assert (await exchange(running.port, request("-p1"))).rc == 0
    assert {entry["level"] for entry in running.lines.entries} == {"info"}


async def test_old_tls_is_refused():
    async with running_server() as running:
        context = trusting()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream, ConnectionError)):
            await connect(running.port, context)
