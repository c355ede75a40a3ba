"""The control socket: who is let in, limits, and that no peer harms another."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

import anyio
import pytest
from kit.control import (
    OWN_PEER,
    READING_PEER,
    STRANGE_PEER,
    LinePeer,
    descriptors,
    peer_of,
    running_control,
    server_status,
)

from stapsrv.control.protocol.jsonrpc import MAX_REQUEST_BYTES, Code
from stapsrv.control.server import server
from stapsrv.control.server.auth import Policy
from stapsrv.control.server.connection import ControlLimits, RateLimiter
from stapsrv.control.server.server import open_control_socket
from stapsrv.supervisor.lifecycle import State

pytestmark = pytest.mark.anyio


def error_of(message: dict, *, request_id: object = 1) -> tuple[int, str]:
    assert message["jsonrpc"] == "2.0"
    assert message["id"] == request_id
    return message["error"]["code"], message["error"]["message"]


async def answers(peer: LinePeer) -> None:
    """Check that a peer is served."""
    assert (await peer.call("hello"))["result"]["pid"] == 4242


# Who is let in.


async def test_owner_is_let_in_and_told_what_it_may_do(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        assert (await peer.call("hello", request_id="a"))["result"] == {
            "protocol": 1,
            "version": "0.1",
            "pid": 4242,
            "user": "me",
            "access": "all",
            "features": ["drain", "progress", "reload", "timeout"],
        }


async def test_reader_may_read(tmp_path):
    async with (
        running_control(tmp_path, server_status(7), peers=[READING_PEER]) as control,
        peer_of(control) as peer,
    ):
        assert (await peer.call("hello"))["result"]["access"] == "read"
        assert [server["id"] for server in (await peer.call("status"))["result"]["servers"]] == [7]


@pytest.mark.parametrize("method", ["start", "stop", "restart", "drain", "undrain", "reload", "end"])
async def test_reader_may_not_command(tmp_path, method):
    async with running_control(tmp_path, peers=[READING_PEER]) as control, peer_of(control) as peer:
        assert error_of(await peer.call(method, {"ids": "all"})) == (
            Code.NOT_PERMITTED,
            f"{method}: not permitted to user 1002; ask as the user that the supervisor runs as, or as root",
        )
        await answers(peer)
        assert control.commands.told == []
    assert control.lines.entries == [
        {
            "level": "warning",
            "event": "control.refused",
            "user": "1002",
            "reason": f"{method} is not permitted",
        }
    ]


async def test_stranger_is_told_and_sent_away(tmp_path):
    async with running_control(tmp_path, peers=[STRANGE_PEER]) as control:
        async with peer_of(control) as peer:
            assert error_of(await peer.receive(), request_id=None) == (
                Code.NOT_PERMITTED,
                "user id 1003 may not speak to this supervisor;"
                " ask as the user that it runs as, or join group stap-server to read its status",
            )
            assert await peer.wait_closed() == b""
        async with peer_of(control) as peer:
            await answers(peer)
    assert control.lines.entries == [
        {
            "level": "warning",
            "event": "control.refused",
            "user": 1003,
            "reason": "connecting is not permitted",
        }
    ]


async def test_peer_that_the_kernel_cannot_name_is_sent_away(tmp_path):
    async with running_control(tmp_path, peers=[OSError(errno.ENOTCONN, "gone")]) as control:
        async with peer_of(control) as peer:
            assert await peer.wait_closed() == b""
        async with peer_of(control) as peer:
            await answers(peer)
    assert control.lines.entries == []


async def test_real_credentials(tmp_path):
    """This process connects to itself, under policies that make it the owner, a reader, a stranger."""
    policies = {
        "all": Policy(os.geteuid(), None),
        "read": Policy(os.geteuid() + 1, os.getegid()),
        None: Policy(os.geteuid() + 1, None),
    }
    if os.geteuid() == 0:
        policies = {"all": Policy(1, None)}
    for access, policy in policies.items():
        async with running_control(tmp_path, policy=policy) as control, peer_of(control) as peer:
            hello = await peer.call("hello")
            assert hello.get("result", {}).get("access") == access


async def test_socket_is_for_its_user_and_group(tmp_path):
    async with running_control(tmp_path) as control:
        assert stat.S_IMODE(control.path.lstat().st_mode) == 0o660
    assert not control.path.exists()


# What is no request.


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
async def test_what_is_no_request_ends_the_connection(tmp_path, line, code, request_id):
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
        control.commands.gate = anyio.Event()
        await peer.request("stop", {"ids": [7]}, request_id="stop")
        await peer.send(b"nonsense\n")
        assert error_of(await peer.receive(), request_id=None)[0] == Code.PARSE_ERROR
        control.commands.gate.set()
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


# Slow and silent peers.


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
        with anyio.fail_after(10):
            while refusal is None:
                with contextlib.suppress(anyio.BrokenResourceError):
                    await peer.stream.send(b" ")
                with anyio.move_on_after(0.01):
                    refusal = await peer.receive()
        assert error_of(refusal, request_id=None)[0] == Code.TIMED_OUT


async def test_silent_peer_is_sent_away(tmp_path):
    async with running_control(tmp_path, idle_s=0.05) as control, peer_of(control) as peer:
        assert error_of(await peer.receive(), request_id=None) == (
            Code.TIMED_OUT,
            "no request within 0.05 s",
        )
        assert await peer.wait_closed() == b""
    assert control.lines.events() == []


async def test_peer_that_waits_for_an_answer_is_not_idle(tmp_path):
    async with (
        running_control(tmp_path, server_status(7), idle_s=0.5) as control,
        peer_of(control) as peer,
    ):
        control.commands.gate = anyio.Event()
        reply = await peer.call("stop", {"ids": [7], "timeout_s": 0.8})
        assert "is still stopping" in reply["result"]["outcomes"][0]["error"]


async def test_peer_that_never_reads_is_given_up(tmp_path):
    many = [server_status(number, reason="x" * 1000) for number in range(1, 2000)]
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
        control.commands.gate = anyio.Event()
        for number in (1, 2):
            await peer.request("restart", {"ids": [7]}, request_id=number)
        assert error_of(await peer.call("hello", request_id=3), request_id=3) == (
            Code.BUSY,
            "2 requests of this connection are in flight already",
        )
        control.commands.gate.set()
        assert {(await peer.receive())["id"], (await peer.receive())["id"]} == {1, 2}
        await answers(peer)


async def test_fast_user_is_read_more_slowly(tmp_path):
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


# Many peers.


async def test_hundred_connections(tmp_path):
    before = descriptors()
    async with running_control(tmp_path, server_status(7)) as control:
        async with contextlib.AsyncExitStack() as open_peers:
            peers = [await open_peers.enter_async_context(peer_of(control)) for _ in range(100)]
            async with anyio.create_task_group() as tasks:
                for peer in peers:
                    tasks.start_soon(answers, peer)
            assert control.lines.entries == []
    assert descriptors() <= before + 2


async def test_connections_are_bounded(tmp_path):
    async with running_control(tmp_path, connections=2) as control:
        async with peer_of(control) as one, peer_of(control) as two:
            await answers(one)
            await answers(two)
            for _ in range(2):
                async with peer_of(control) as third:
                    assert error_of(await third.receive(), request_id=None) == (
                        Code.BUSY,
                        "2 connections are open already; try again later",
                    )
                    assert await third.wait_closed() == b""
            await two.stream.send_eof()
            assert await two.wait_closed() == b""
            # Said once, however often somebody knocks.
            assert control.lines.events() == ["control.crowded"]
            async with peer_of(control) as third, peer_of(control) as fourth:
                await answers(third)
                assert error_of(await fourth.receive(), request_id=None)[0] == Code.BUSY
    refusal = {"level": "warning", "event": "control.crowded", "reason": "2 connections are open already"}
    assert control.lines.entries == [refusal] * 2


async def test_readers_cannot_keep_the_owner_out(tmp_path):
    peers = [READING_PEER, READING_PEER, OWN_PEER]
    async with running_control(tmp_path, peers=peers, reader_connections=1) as control:
        async with peer_of(control) as reader, peer_of(control) as second, peer_of(control) as owner:
            await answers(reader)
            assert error_of(await second.receive(), request_id=None) == (
                Code.BUSY,
                "1 connections are open already; try again later",
            )
            await answers(owner)


async def test_leaving_peers_leave_nothing_behind(tmp_path):
    before = descriptors()
    async with running_control(tmp_path, server_status(7), connections=1) as control:
        for line in (b"", b"{", b'{"jsonrpc":"2.0","id":1,"method":"status"}\n'):
            with anyio.fail_after(20):
                while True:
                    # The place of the one before is free a moment after it left.
                    async with peer_of(control) as peer:
                        with contextlib.suppress(anyio.BrokenResourceError):
                            await peer.request("hello")
                        if "result" in await peer.receive():
                            await peer.send(line)
                            break
    assert descriptors() <= before + 2


class ShortOfDescriptors:
    """A listener whose first accepts fail as when descriptors run out."""

    def __init__(self, listener: socket.socket, error: int) -> None:
        self._listener = listener
        self._error = error
        self._failures = 2

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self):
        if self._failures:
            self._failures -= 1
            raise OSError(self._error, os.strerror(self._error))
        return self._listener.accept()


async def test_loop_outlives_a_shortage_and_says_so_once(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def short(path):
        with open_control_socket(path) as listener:
            yield ShortOfDescriptors(listener, errno.EMFILE)

    monkeypatch.setattr(server, "open_control_socket", short)
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        await answers(peer)
    assert control.lines.entries == [
        {"level": "warning", "event": "control.exhausted", "reason": "Too many open files"}
    ]


async def test_other_failures_end_the_endpoint(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def broken(path):
        with open_control_socket(path) as listener:
            yield ShortOfDescriptors(listener, errno.EBADF)

    monkeypatch.setattr(server, "open_control_socket", broken)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running_control(tmp_path) as control, peer_of(control) as peer:
            await peer.wait_closed()
    assert caught.group_contains(OSError, match="Bad file descriptor")
    assert not control.path.exists()


# Peers that leave, and the end.


async def test_command_goes_on_when_its_peer_leaves(tmp_path):
    async with running_control(tmp_path, server_status(7)) as control:
        control.commands.gate = anyio.Event()
        async with peer_of(control) as peer:
            await peer.request("stop", {"ids": [7], "progress": True})
            assert (await peer.receive())["params"]["server"]["state"] == "stopping"
        control.commands.gate.set()
        async with peer_of(control) as other:
            with anyio.fail_after(20):
                while (await other.call("status"))["result"]["servers"]:
                    pass
    assert control.commands.finished == 1


async def test_progress_to_a_peer_that_left_harms_nobody(tmp_path):
    async with running_control(tmp_path, server_status(7)) as control:
        control.commands.gate = anyio.Event()
        async with peer_of(control) as peer:
            await peer.request("restart", {"ids": [7], "progress": True})
            await peer.receive()
        async with peer_of(control) as other:
            control.commands.gate.set()
            await answers(other)
            await answers(other)
    assert control.commands.finished == 1
    assert control.lines.events() == ["control.command"]


async def test_cancellation_tells_those_who_wait(tmp_path):
    async with (
        running_control(tmp_path, server_status(7)) as control,
        peer_of(control) as peer,
        peer_of(control) as silent,
    ):
        control.commands.gate = anyio.Event()
        await answers(silent)
        await peer.request("stop", {"ids": [7], "progress": True})
        await peer.receive()
        control.scope.cancel()
        assert error_of(await peer.receive()) == (Code.SHUTTING_DOWN, "the supervisor is shutting down")
        assert await peer.wait_closed() == b""
        assert await silent.wait_closed() == b""
        with anyio.fail_after(20):
            await control.closed.wait()
        assert not control.path.exists()


def end_with_the_command(control) -> None:
    """Let the end of the command that waits at the gate end everything, in the same turn of the loop."""
    move = control.commands.move

    def end_and_move(server_id, state, report):
        control.scope.cancel()
        move(server_id, state, report)

    control.commands.move = end_and_move
    control.commands.gate.set()


async def test_outcome_that_comes_with_the_cancellation_is_told(tmp_path):
    """The end of the last server may end the supervisor."""
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        control.commands.gate = anyio.Event()
        await peer.request("stop", {"ids": [7]})
        with anyio.fail_after(20):
            await control.commands.began.wait()
        end_with_the_command(control)
        (outcome,) = (await peer.receive())["result"]["outcomes"]
        assert outcome["server"]["state"] == "stopped"
        assert await peer.wait_closed() == b""


async def test_peer_that_does_not_read_holds_the_end_up_for_a_moment_only(tmp_path):
    many = [server_status(number, reason="x" * 1000) for number in range(1, 2000)]
    async with (
        running_control(tmp_path, *many, shutdown_grace_s=0.1) as control,
        peer_of(control) as silent,
        peer_of(control) as neighbour,
    ):
        for number in range(4):
            await silent.request("status", request_id=number)
        await answers(neighbour)
        control.scope.cancel()
        with anyio.fail_after(5):
            await control.closed.wait()


async def test_last_answer_to_a_peer_that_does_not_read_has_a_moment_too(tmp_path):
    many = [server_status(number, reason="x" * 1000) for number in range(1, 2000)]
    async with (
        running_control(tmp_path, *many, shutdown_grace_s=0.1) as control,
        peer_of(control) as silent,
    ):
        control.commands.gate = anyio.Event()
        await silent.request("restart", {"ids": "all"})
        with anyio.fail_after(20):
            await control.commands.began.wait()
        end_with_the_command(control)
        with anyio.fail_after(5):
            await control.closed.wait()


async def test_crash_of_a_status_ends_its_connection_alone(tmp_path):
    async with running_control(tmp_path) as control:
        async with peer_of(control) as peer, peer_of(control) as neighbour:
            await answers(neighbour)
            control.commands.fault = ZeroDivisionError()
            await peer.request("status")
            assert await peer.wait_closed() == b""
            control.commands.fault = None
            await answers(neighbour)
    (entry,) = control.lines.entries
    assert (entry["level"], entry["event"], entry["user"]) == ("error", "control.crashed", "1001")


@pytest.mark.parametrize("state", [State.SERVING])
async def test_answers_are_whole_lines_whoever_else_speaks(tmp_path, state):
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
