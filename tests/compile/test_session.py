"""A connection's story over real TLS: what is answered, what each deadline does, what is given back."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import struct
import warnings
from collections.abc import AsyncIterator

import anyio
import attrs
import pytest
import structlog
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSAttribute, TLSStream
from kit.client import Answer, connect, exchange, frame, read_answer, request, reset_at_once, trusting
from kit.loops import every_loop
from kit.service import Shown, running_server

from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.context import RequestCounts
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.identity.certificate import load_or_create_identity

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_request_is_answered_and_closed(version):
    async with running_server() as running:
        context = trusting(minimum_version=version, maximum_version=version)
        async with await connect(running.port, context) as tls:
            await tls.send(frame(request("-p4", "-e", "probe begin {}")))
            answer = Answer.of(await read_answer(tls))
        await running.lines.wait("request.summary")
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
        "request.summary",
    ]


async def test_answer_is_deflated_for_clients_elsewhere_only():
    """Two addresses stand for two hosts: 127.0.0.2 is this one, too, and nothing says so."""
    async with running_server() as running:
        sizes = []
        for client in ("127.0.0.1", "127.0.0.2"):
            stream = await anyio.connect_tcp("127.0.0.1", running.port, local_host=client)
            tls = await TLSStream.wrap(
                stream, server_side=False, ssl_context=trusting(), standard_compatible=False
            )
            async with tls:
                await tls.send(frame(request("-p1")))
                data = await read_answer(tls)
            assert Answer.of(data).files == {"stap_x.ko": b"module" * 1000}
            sizes.append(len(data))
    stored, deflated = sizes
    assert stored > 6000 > deflated


async def test_request_may_arrive_byte_by_byte():
    async with running_server() as running, await connect(running.port) as tls:
        for byte in frame(request("-p1")):
            await tls.send(bytes([byte]))
        assert Answer.of(await read_answer(tls)).rc == 0


async def test_connection_for_the_certificate_alone_is_no_error():
    async with running_server() as running:
        async with await connect(running.port) as tls:
            await tls.send(struct.pack(">I", 0))
            assert await read_answer(tls) == b""
    assert "connection.failed" not in running.lines.events()
    assert running.service.counts == RequestCounts(done=0, failed=0)


async def test_response_to_a_too_large_frame_names_its_size():
    async with running_server() as running:
        async with await connect(running.port) as tls:
            await tls.send(frame(bytes(1_000_000)))
            answer = Answer.of(await read_answer(tls))
    assert "Error size of (compressed) request file is too large" in answer.stderr
    assert "1000000" in answer.stderr
    assert "--max-compressed-request" in answer.stderr


async def test_neither_response_nor_worker_waits_for_the_clean_up():
    async with running_server() as running:
        running.engine.tidying = anyio.Event()
        assert (await exchange(running.port, request("-p4"))).rc == 0
        assert running.service.pool.statistics().running == 0
        running.engine.tidying.set()


async def test_crash_in_clean_up_is_logged_and_ends_nothing():
    async with running_server() as running:
        running.engine.last_fault = ValueError("a bug")
        assert (await exchange(running.port, request("-p4"))).rc == 0
        await running.lines.wait("request.untidy")
        assert (await exchange(running.port, request("-p4"))).rc == 0


async def test_crash_outside_of_a_request_ends_one_connection_alone(monkeypatch):
    async with running_server() as running:
        monkeypatch.setattr("stapsrv.compile.session.RequestHandler", lambda *_, **__: 1 // 0)
        async with await connect(running.port) as tls:
            await tls.send(frame(request("-p1")))
            assert await read_answer(tls) == b""
        monkeypatch.undo()
        assert (await exchange(running.port, request("-p1"))).rc == 0
        assert running.service.pool.statistics().running == 0
    assert running.lines.events().count("connection.crashed") == 1


STOPPING = "Server: The compile was ended: the server is stopping; try again later\n"


@every_loop
@pytest.mark.parametrize("end", ["stopped", "cancelled"])
async def test_clients_get_a_response_when_the_server_s_end_ends_their_requests(end):
    """One request compiles, another waits for its turn."""
    async with running_server(max_threads=1, drain_s=0.2) as running:
        running.engine.gate = anyio.Event()
        first, second = await connect(running.port), await connect(running.port)
        await first.send(frame(request("-p1")))
        await running.engine.wait(lambda: running.engine.jobs)
        await second.send(frame(request("-p2")))
        await running.lines.wait("request.overloaded")
        if end == "stopped":
            running.server.stop()
        else:
            running.scope.cancel()
        for tls in (first, second):
            answer = Answer.of(await read_answer(tls))
            assert (answer.rc, answer.stderr) == (1, STOPPING)
            await tls.aclose()
        await running.ended.wait()
    assert running.engine.cancelled == 1
    assert running.lines.events().count("request.interrupted") == 2
    summaries = [entry for entry in running.lines.entries if entry["event"] == "request.summary"]
    assert [entry["result"] for entry in summaries] == ["refused rc=1"] * 2


@every_loop
async def test_stop_does_not_wait_for_a_client_that_does_not_read(monkeypatch):
    monkeypatch.setattr("stapsrv.compile.session._STOPPING_S", 0.2)
    async with running_server(drain_s=0.0) as running:
        running.engine.gate = anyio.Event()
        async with await connect(running.port) as tls:
            await tls.send(frame(request("-p1")))
            await running.engine.wait(lambda: running.engine.jobs)
            running.server.stop()
            with anyio.fail_after(60):
                await running.ended.wait()
            await anyio.aclose_forcefully(tls)


@every_loop
async def test_silent_peers_cost_no_worker():
    async with running_server(max_threads=1, handshake_s=30, request_s=30) as running:
        silent = [await anyio.connect_tcp("127.0.0.1", running.port) for _ in range(5)]
        mute = [await connect(running.port) for _ in range(5)]
        assert (await exchange(running.port, request("-p1"))).rc == 0
        for stream in (*silent, *mute):
            await anyio.aclose_forcefully(stream)


@every_loop
async def test_handshake_has_a_deadline():
    async with running_server(handshake_s=0.2) as running:
        async with await anyio.connect_tcp("127.0.0.1", running.port) as silent:
            with pytest.raises(anyio.EndOfStream):
                await silent.receive()
    assert running.lines.reasons("connection.failed") == ["no TLS handshake within 0.2 seconds"]


@every_loop
async def test_arrival_has_a_deadline():
    async with running_server(request_s=0.5) as running:
        async with await connect(running.port) as slow:
            await slow.send(frame(request("-p1"))[:-1])
            assert await read_answer(slow) == b""
    assert running.lines.reasons("connection.failed") == [
        "the request did not arrive whole within 0.5 seconds"
    ]


@every_loop
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


@every_loop
async def test_queue_has_a_deadline():
    async with running_server(max_threads=1, queue_s=0.2) as running:
        running.engine.gate = anyio.Event()
        async with await connect(running.port) as first:
            await first.send(frame(request("-p1")))
            await running.engine.wait(lambda: running.engine.jobs)
            answer = await exchange(running.port, request("-p2"))
            assert answer.stderr == (
                "Server: The server is busy: no worker was free within 0.2 seconds; try again later\n"
            )
            running.engine.gate.set()
            assert Answer.of(await read_answer(first)).rc == 0
    assert "request.overloaded" in running.lines.events()


@every_loop
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


@every_loop
async def test_client_that_leaves_the_queue_leaves_its_place():
    async with running_server(max_threads=1) as running:
        running.engine.gate = anyio.Event()
        async with await connect(running.port) as first:
            await first.send(frame(request("-p1")))
            await running.engine.wait(lambda: running.engine.jobs)
            second = await connect(running.port)
            await second.send(frame(request("-p2")))
            await running.lines.wait("request.overloaded")
            await anyio.aclose_forcefully(second)
            await running.lines.wait("request.abandoned")
            assert running.service.pool.statistics().queued == 0
            running.engine.gate.set()
            assert Answer.of(await read_answer(first)).rc == 0


async def test_equal_requests_share_a_compile_and_each_is_answered_for_itself():
    asking = request("-p4", "--privilege=stapusr")
    async with running_server(max_threads=2) as running:
        running.engine.gate = anyio.Event()
        async with (
            await connect(running.port) as first,
            await connect(running.port) as leaver,
            await connect(running.port) as last,
        ):
            await first.send(frame(asking))
            await running.engine.wait(lambda: running.engine.jobs)
            await leaver.send(frame(asking))
            await last.send(frame(request("-p4", "--privilege=stapusr", locale="BAD=1")))
            await running.lines.wait("request.options", 3)
            await anyio.aclose_forcefully(leaver)
            await running.lines.wait("request.abandoned")
            running.engine.gate.set()
            answers = [Answer.of(await read_answer(tls)) for tls in (first, last)]
        await running.lines.wait("request.summary", 3)
    assert len(running.engine.jobs) == 1
    assert running.engine.cancelled == 0
    assert [answer.stderr for answer in answers] == [
        "err\n",
        "Server: Localization key 'BAD' not found in global list\nerr\n",
    ]
    assert all(answer.files["stap_x.ko.sgn"] for answer in answers)
    sources = [line["source"] for line in running.lines.entries if line["event"] == "request.summary"]
    assert set(sources) == {None, "compiled", "shared"}


async def test_crash_of_a_shared_compile_gives_each_client_a_response():
    async with running_server(max_threads=2) as running:
        running.engine.gate, running.engine.late_fault = anyio.Event(), RuntimeError("boom")
        async with await connect(running.port) as first, await connect(running.port) as second:
            for tls in (first, second):
                await tls.send(frame(request("-p4")))
            await running.lines.wait("request.options", 2)
            running.engine.gate.set()
            answers = [Answer.of(await read_answer(tls)) for tls in (first, second)]
    assert len(running.engine.jobs) == 1
    assert [answer.rc for answer in answers] == [1, 1]
    assert all("failed on this request" in answer.stderr for answer in answers)
    assert running.lines.events().count("request.crashed") == 2


async def test_client_that_resets_as_soon_as_its_request_has_arrived(monkeypatch):
    """Whatever is asked of its socket then: it has left, and that is all."""
    async with running_server() as running:
        tls = await connect(running.port)
        raw = tls.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        receive = TLSStream.receive
        gone = anyio.Event()

        async def receive_and_wait(self, max_bytes: int = 65536) -> bytes:
            data = await receive(self, max_bytes)
            if self.extra(TLSAttribute.server_side) and len(data) > 100:
                await anyio.aclose_forcefully(tls)
                with contextlib.suppress(OSError):
                    while self.extra(SocketAttribute.raw_socket).getpeername():
                        await anyio.lowlevel.checkpoint()
                gone.set()
            return data

        with monkeypatch.context() as patched:
            patched.setattr(TLSStream, "receive", receive_and_wait)
            await tls.send(frame(request("-p1")))
            with anyio.fail_after(60):
                await gone.wait()
            await running.lines.wait("request.summary")
        assert (await exchange(running.port, request("-p1"))).rc == 0
    assert not [entry for entry in running.lines.entries if entry["level"] == "error"]


async def test_client_that_resets_before_it_is_accepted():
    async with running_server() as running:
        reset_at_once(running.port)
        await running.lines.wait("connection.failed")
        assert running.lines.reasons("connection.failed") == ["[Errno 104] Connection reset by peer"]
    assert {entry["level"] for entry in running.lines.entries} == {"info"}


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


class TestResumption:
    """A raw client that keeps its session; the real one never does."""

    @staticmethod
    def _ask(
        port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
    ) -> tuple[bool, ssl.SSLSession]:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            with context.wrap_socket(connection, session=session) as tls:
                tls.sendall(frame(request("-p1")))
                while tls.recv(65536):
                    continue
                assert tls.session_reused is not None
                assert tls.session is not None
                return tls.session_reused, tls.session

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_session_is_resumed_until_the_certificate_is_renewed(self, identity, version):
        made = await load_or_create_identity(identity, log=structlog.get_logger("silent"))
        shown = Shown(made)
        context = trusting(minimum_version=version, maximum_version=version)
        async with running_server(identity=shown) as running:
            ask = functools.partial(anyio.to_thread.run_sync, self._ask, running.port, context)
            at_first, session = await ask(None)
            again, session = await ask(session)
            shown.loaded = attrs.evolve(made)
            after_renewal, _ = await ask(session)
        assert (at_first, again, after_renewal) == (False, True, False)


async def test_each_piece_of_a_request_is_acknowledged_at_once():
    """The real client's kernel holds each back until the last was acknowledged, which may take 40 ms."""
    took = [1.0]
    async with running_server() as running:
        payload = request("-p1")
        # Others use this machine, too; to who waits, none comes sooner than in 40 ms.
        while min(took) >= 0.035 and len(took) < 50:
            async with await anyio.connect_tcp("127.0.0.1", running.port) as stream:
                stream.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
                tls = await TLSStream.wrap(
                    stream, server_side=False, ssl_context=trusting(), standard_compatible=False
                )
                began = anyio.current_time()
                await tls.send(frame(payload)[:4])
                await tls.send(payload)
                assert Answer.of(await read_answer(tls)).rc == 0
                took.append(anyio.current_time() - began)
    assert min(took) < 0.035, took


async def test_summary_waits_until_the_result_is_stored_or_not(monkeypatch):
    async with running_server() as running:
        entry = CacheEntry(CompileResult(0, b"out\n", b"err\n", ()))

        @contextlib.asynccontextmanager
        async def answer(_job: CompileJob) -> AsyncIterator[CacheEntry]:
            yield entry

        monkeypatch.setattr(running.service.engine, "answer", answer)
        assert (await exchange(running.port, request("-p4"))).rc == 0
        async with await connect(running.port) as tls:
            await tls.send(frame(request("-p4")))
            await read_answer(tls)
        assert "request.summary" not in running.lines.events()
        entry.finish("option")
        await running.lines.wait("request.summary", 2)
    reasons = [line["uncacheable"] for line in running.lines.entries if line["event"] == "request.summary"]
    assert reasons == ["option", "option"]


async def test_summary_waits_a_bounded_time_for_the_store(monkeypatch):
    monkeypatch.setattr("stapsrv.compile.session._STORE_S", 0.05)
    async with running_server() as running:

        @contextlib.asynccontextmanager
        async def answer(_job: CompileJob) -> AsyncIterator[CacheEntry]:
            yield CacheEntry(CompileResult(0, b"out\n", b"err\n", ()))

        monkeypatch.setattr(running.service.engine, "answer", answer)
        assert (await exchange(running.port, request("-p4"))).rc == 0
        await running.lines.wait("request.summary")
        assert running.lines.entries[-1]["uncacheable"] == "unknown yet"
