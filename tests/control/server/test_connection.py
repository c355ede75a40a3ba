"""One connection: requests in any pieces, limits, slow and silent peers, and nothing lost on the way."""

from __future__ import annotations

import contextlib
import socket

import anyio
import pytest
from kit.control import (
    answers,
    end_with_the_command,
    error_of,
    peer_of,
    running_control,
)
from kit.supervisor import server_status

from stapsrv.control.protocol.jsonrpc import MAX_REQUEST_BYTES, Code
from stapsrv.control.server.connection import ControlLimits, RateLimiter, receive, send_all
from stapsrv.supervisor.lifecycle import State

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


async def test_much_data_goes_through(pair):
    ours, theirs = pair
    data = bytes(range(256)) * 10_000
    received = b""
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_all, ours, data)
            while len(received) < len(data):
                received += await receive(theirs)
    assert received == data


async def test_end_is_nothing(pair):
    ours, theirs = pair
    theirs.close()
    assert await receive(ours) == b""
    with pytest.raises(BrokenPipeError):
        await send_all(ours, b"x")


async def test_cancelled_receive_leaves_the_data(pair):
    ours, theirs = pair
    theirs.send(b"data")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await receive(ours)
    assert scope.cancelled_caught
    assert await receive(ours) == b"data"


async def test_data_meets_cancellation(pair):
    """Both in one turn of the loop: on asyncio a callback must not trip over the cancelled wait."""
    ours, theirs = pair
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive, ours)
        await anyio.wait_all_tasks_blocked()
        theirs.send(b"data")
        tasks.cancel_scope.cancel()
    assert await receive(ours) == b"data"


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"not JSON\n", Code.PARSE_ERROR, None),
        (b"\n", Code.PARSE_ERROR, None),
        (b"\xff\n", Code.PARSE_ERROR, None),
        (b"[" * 100_000 + b"\n", Code.PARSE_ERROR, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"hello"}]\n', Code.INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","method":"hello"}\n', Code.INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":5}\n', Code.INVALID_REQUEST, 5),
        (b"x" * (MAX_REQUEST_BYTES + 1) + b"\n", Code.INVALID_REQUEST, None),
    ],
)
async def test_invalid_request_ends_the_connection(tmp_path, line, code, request_id):
    async with running_control(tmp_path) as control:
        async with peer_of(control) as peer:
            await peer.send(line)
            found, text = error_of(await peer.receive(), request_id=request_id)
            assert found == code
            assert await peer.wait_closed() == b""
        async with peer_of(control) as peer:
            await answers(peer)
    (entry,) = control.lines.entries
    assert (entry["level"], entry["event"], entry["user"]) == ("info", "control.malformed", "1001")
    assert str(entry["reason"]) == text


async def test_line_without_end_is_refused_at_the_limit(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        with contextlib.suppress(anyio.BrokenResourceError):
            while True:
                await peer.send(b"x" * 65_536)
        assert error_of(await peer.receive(), request_id=None) == (
            Code.INVALID_REQUEST,
            f"a line has more than {MAX_REQUEST_BYTES} bytes",
        )


async def test_longest_line_is_taken(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        request = b'{"jsonrpc":"2.0","id":1,"method":"hello"}'
        await peer.send(request.ljust(MAX_REQUEST_BYTES) + b"\n")
        assert "result" in await peer.receive()


async def test_requests_before_a_bad_line_are_answered(tmp_path):
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        control.supervisor.gate = anyio.Event()
        await peer.request("stop", {"ids": [7]}, request_id="stop")
        await peer.send(b"nonsense\n")
        assert error_of(await peer.receive(), request_id=None)[0] == Code.PARSE_ERROR
        control.supervisor.gate.set()
        assert (await peer.receive())["id"] == "stop"
        assert await peer.wait_closed() == b""


async def test_end_within_a_line(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        await peer.send(b'{"jsonrpc":"2.0"')
        await peer.stream.send_eof()
        assert error_of(await peer.receive(), request_id=None) == (
            Code.INVALID_REQUEST,
            "the connection ended within a line",
        )


async def test_peer_that_only_sends_is_answered(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        await peer.request("hello", request_id="first")
        await peer.request("hello", request_id="second")
        await peer.stream.send_eof()
        assert {(await peer.receive())["id"], (await peer.receive())["id"]} == {"first", "second"}
        assert await peer.wait_closed() == b""


async def test_requests_may_arrive_in_any_pieces(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        for byte in b'{"jsonrpc":"2.0","id":1,"method":"hello"}\n{"jsonrpc"':
            await peer.send(bytes([byte]))
        await peer.send(b':"2.0","id":2,"method":"hello"}\n')
        assert [(await peer.receive())["id"], (await peer.receive())["id"]] == [1, 2]


async def test_line_that_does_not_end_in_time(tmp_path):
    async with running_control(tmp_path, line_s=0.05) as control, peer_of(control) as peer:
        await answers(peer)
        await peer.send(b"{")
        assert error_of(await peer.receive(), request_id=None) == (
            Code.TIMED_OUT,
            "no whole line within 0.05 s",
        )
        assert await peer.wait_closed() == b""
    assert control.lines.events() == ["control.malformed"]


async def test_trickle_does_not_extend_a_line(tmp_path):
    async with running_control(tmp_path, line_s=0.2) as control, peer_of(control) as peer:
        refusal = None
        with anyio.fail_after(60):
            while refusal is None:
                with contextlib.suppress(anyio.BrokenResourceError):
                    await peer.stream.send(b" ")
                with anyio.move_on_after(0.01):
                    refusal = await peer.receive()
        assert error_of(refusal, request_id=None)[0] == Code.TIMED_OUT


async def test_idle_peer_is_disconnected(tmp_path):
    async with running_control(tmp_path, idle_s=0.05) as control, peer_of(control) as peer:
        assert error_of(await peer.receive(), request_id=None) == (
            Code.TIMED_OUT,
            "no request within 0.05 s",
        )
        assert await peer.wait_closed() == b""
    assert control.lines.events() == []


async def test_peer_that_waits_for_an_answer_is_not_idle(tmp_path):
    async with (
        running_control(tmp_path, server_status(7), idle_s=1.0) as control,
        peer_of(control) as peer,
    ):
        control.supervisor.gate = anyio.Event()
        reply = await peer.call("stop", {"ids": [7], "timeout_s": 1.3})
        assert "is still stopping" in reply["result"]["outcomes"][0]["error"]


async def test_peer_that_never_reads_is_disconnected(tmp_path):
    many = [server_status(number, reason="x" * 8000) for number in range(1, 200)]
    async with running_control(tmp_path, *many, write_s=0.2) as control:
        async with peer_of(control) as silent, peer_of(control) as neighbour:
            for number in range(4):
                await silent.request("status", request_id=number)
            await answers(neighbour)
            await control.lines.wait("control.stalled")
            await answers(neighbour)
            await silent.wait_closed()
    assert control.lines.entries == [{"level": "info", "event": "control.stalled", "user": "1001"}]


async def test_requests_in_flight_are_bounded(tmp_path):
    async with running_control(tmp_path, server_status(7), in_flight=2) as control, peer_of(control) as peer:
        control.supervisor.gate = anyio.Event()
        for number in (1, 2):
            await peer.request("restart", {"ids": [7]}, request_id=number)
        assert error_of(await peer.call("hello", request_id=3), request_id=3) == (
            Code.BUSY,
            "2 requests of this connection are in flight already",
        )
        control.supervisor.gate.set()
        assert {(await peer.receive())["id"], (await peer.receive())["id"]} == {1, 2}
        await answers(peer)


async def test_requests_beyond_the_rate_are_read_later(tmp_path):
    async with (
        running_control(tmp_path, requests_per_s=50, burst=1) as control,
        peer_of(control) as one,
        peer_of(control) as other,
    ):
        began = anyio.current_time()
        for _ in range(5):
            await answers(one)
            await answers(other)
        # Ten requests, of which two are free.
        assert anyio.current_time() - began >= 8 / 50


def test_rate_limiter_recovers(monkeypatch):
    now = 100.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)
    limiter = RateLimiter(ControlLimits(requests_per_s=10, burst=2))
    assert [limiter.delay() for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    now += 0.25
    assert limiter.delay() == pytest.approx(0.05)
    now += 10
    assert [limiter.delay() for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])


async def test_shutdown_waits_shortly_for_peer_that_does_not_read(tmp_path):
    many = [server_status(number, reason="x" * 8000) for number in range(1, 200)]
    async with (
        running_control(tmp_path, *many, write_s=3600, shutdown_grace_s=0.1) as control,
        peer_of(control) as silent,
        peer_of(control) as neighbour,
    ):
        for number in range(4):
            await silent.request("status", request_id=number)
        await answers(neighbour)
        control.scope.cancel()
        with anyio.fail_after(60):
            await control.closed.wait()


async def test_last_answer_has_the_shutdown_grace(tmp_path):
    many = [server_status(number, reason="x" * 8000) for number in range(1, 200)]
    async with (
        running_control(tmp_path, *many, write_s=3600, shutdown_grace_s=0.1) as control,
        peer_of(control) as silent,
    ):
        control.supervisor.gate = anyio.Event()
        await silent.request("restart", {"ids": "all"})
        with anyio.fail_after(60):
            await control.supervisor.began.wait()
        end_with_the_command(control)
        with anyio.fail_after(60):
            await control.closed.wait()


@pytest.mark.parametrize("state", [State.SERVING])
async def test_concurrent_answers_are_whole_lines(tmp_path, state):
    """Progress and answers of several requests go over one connection, each line in one piece."""
    servers = [server_status(number, state, reason="x" * 3000) for number in range(1, 40)]
    async with running_control(tmp_path, *servers) as control, peer_of(control) as peer:
        for number in range(8):
            await peer.request("restart", {"ids": "all", "progress": True}, request_id=number)
        seen = dict.fromkeys(range(8), 0)
        open_requests = set(seen)
        while open_requests:
            message = await peer.receive()
            if message.get("method") == "progress":
                assert message["params"]["id"] in open_requests
                seen[message["params"]["id"]] += 1
            else:
                open_requests.remove(message["id"])
        assert seen == dict.fromkeys(range(8), 2 * 39)
