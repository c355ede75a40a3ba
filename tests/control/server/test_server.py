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
    answers,
    descriptors,
    end_with_the_command,
    error_of,
    peer_of,
    running_control,
)
from kit.supervisor import server_status

from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.control.server import server
from stapsrv.control.server.auth import Policy
from stapsrv.control.server.server import open_control_socket
from stapsrv.errors import ConfigError
from stapsrv.system.unix_socket import address_of

pytestmark = pytest.mark.anyio


# Who is let in.


async def test_owner_has_access_to_all(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        assert (await peer.call("hello", request_id="a"))["result"] == {
            "protocol": 1,
            "version": "0.1",
            "pid": 4242,
            "user": "me",
            "access": "all",
            "features": ["drain", "progress", "reload", "scripts", "timeout", "watch"],
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
        assert control.supervisor.told == []
    assert control.lines.entries == [
        {
            "level": "warning",
            "event": "control.refused",
            "user": "1002",
            "reason": f"{method} is not permitted",
        }
    ]


async def test_stranger_gets_an_error_and_is_disconnected(tmp_path):
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


async def test_peer_without_credentials_is_disconnected(tmp_path):
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


# Slow and silent peers.


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


async def test_owner_connects_though_readers_fill_their_share(tmp_path):
    peers = [READING_PEER, READING_PEER, OWN_PEER]
    async with running_control(tmp_path, peers=peers, reader_connections=1) as control:
        async with peer_of(control) as reader, peer_of(control) as second, peer_of(control) as owner:
            await answers(reader)
            assert error_of(await second.receive(), request_id=None) == (
                Code.BUSY,
                "1 connections are open already; try again later",
            )
            await answers(owner)


async def test_disconnected_peers_leave_no_descriptor(tmp_path):
    before = descriptors()
    async with running_control(tmp_path, server_status(7), connections=1) as control:
        for line in (b"", b"{", b'{"jsonrpc":"2.0","id":1,"method":"status"}\n'):
            with anyio.fail_after(60):
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


async def test_accepting_survives_exhausted_descriptors_with_one_log_line(tmp_path, monkeypatch):
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
        control.supervisor.gate = anyio.Event()
        async with peer_of(control) as peer:
            await peer.request("stop", {"ids": [7], "progress": True})
            assert (await peer.receive())["params"]["server"]["state"] == "stopping"
        control.supervisor.gate.set()
        async with peer_of(control) as other:
            with anyio.fail_after(60):
                while (await other.call("status"))["result"]["servers"]:
                    pass
    assert control.supervisor.finished == 1


async def test_progress_to_disconnected_peer_is_dropped(tmp_path):
    async with running_control(tmp_path, server_status(7)) as control:
        control.supervisor.gate = anyio.Event()
        async with peer_of(control) as peer:
            await peer.request("restart", {"ids": [7], "progress": True})
            await peer.receive()
        async with peer_of(control) as other:
            control.supervisor.gate.set()
            await answers(other)
            await answers(other)
    assert control.supervisor.finished == 1
    assert control.lines.events() == ["control.command"]


async def test_cancelled_server_answers_waiting_requests(tmp_path):
    async with (
        running_control(tmp_path, server_status(7)) as control,
        peer_of(control) as peer,
        peer_of(control) as silent,
    ):
        control.supervisor.gate = anyio.Event()
        await answers(silent)
        await peer.request("stop", {"ids": [7], "progress": True})
        await peer.receive()
        control.scope.cancel()
        assert error_of(await peer.receive()) == (Code.SHUTTING_DOWN, "the supervisor is shutting down")
        assert await peer.wait_closed() == b""
        assert await silent.wait_closed() == b""
        with anyio.fail_after(60):
            await control.closed.wait()
        assert not control.path.exists()


async def test_outcome_at_cancellation_is_still_sent(tmp_path):
    """The end of the last server may end the supervisor."""
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        control.supervisor.gate = anyio.Event()
        await peer.request("stop", {"ids": [7]})
        with anyio.fail_after(60):
            await control.supervisor.began.wait()
        end_with_the_command(control)
        (outcome,) = (await peer.receive())["result"]["outcomes"]
        assert outcome["server"]["state"] == "stopped"
        assert await peer.wait_closed() == b""


async def test_crash_of_a_status_ends_its_connection_alone(tmp_path):
    async with running_control(tmp_path) as control:
        async with peer_of(control) as peer, peer_of(control) as neighbour:
            await answers(neighbour)
            control.supervisor.raises = ZeroDivisionError()
            await peer.request("status")
            assert await peer.wait_closed() == b""
            control.supervisor.raises = None
            await answers(neighbour)
    (entry,) = control.lines.entries
    assert (entry["level"], entry["event"], entry["user"]) == ("error", "control.crashed", "1001")


def connect(path) -> None:
    with socket.socket(socket.AF_UNIX) as client, address_of(path) as address:
        client.connect(address)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "control.sock"


def test_file_has_its_mode_and_accepts(path):
    umask = os.umask(0o077)
    try:
        with open_control_socket(path):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
            assert path.lstat().st_uid == os.geteuid()
            assert list(path.parent.iterdir()) == [path]
            connect(path)
    finally:
        os.umask(umask)


def test_file_goes_with_the_listener(path):
    with open_control_socket(path):
        pass
    assert list(path.parent.iterdir()) == []


def test_stale_files_do_not_stand_in_the_way(path):
    for stale in (path, path.with_name(".control.sock.new")):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(stale))
    with open_control_socket(path):
        connect(path)


def test_a_file_of_somebody_else_is_left_alone(path):
    with open_control_socket(path):
        path.unlink()
        path.write_text("another")
    assert path.read_text() == "another"


def test_a_file_that_is_gone_is_no_error(path):
    with open_control_socket(path):
        path.unlink()


def test_long_paths_work(tmp_path):
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    with open_control_socket(directory / "control.sock"):
        connect(directory / "control.sock")
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere/control.sock", f"{'n' * 120}/control.sock"])
def test_missing_directory_is_one_clear_line(tmp_path, name):
    with pytest.raises(ConfigError) as caught, open_control_socket(tmp_path / name):
        pytest.fail("it was made")
    assert str(caught.value) == (
        f"control socket {tmp_path / name}: cannot be made: No such file or directory;"
        " let the server's user write to its directory, or set STAT_PATH to another one"
    )


def test_directory_of_that_name_is_one_clear_line(path):
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be made: Is a directory"), open_control_socket(path):
        pytest.fail("it was made")
    assert list(path.parent.iterdir()) == [path]


def test_failure_within_the_block_takes_the_file_away(path):
    with pytest.raises(ZeroDivisionError), open_control_socket(path):
        raise ZeroDivisionError
    assert not path.exists()
