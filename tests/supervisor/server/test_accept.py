"""The accept loop: what one peer or a shortage does to it, and what ends it."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream
from kit.loops import every_loop

from stapsrv.supervisor.server.accept import accept_forever, deny
from stapsrv.system.streams import adopt

pytestmark = [pytest.mark.anyio, every_loop]


class Failing:
    """A listener whose first accepts fail."""

    def __init__(self, listener: socket.socket, error: int, failures: int) -> None:
        self._listener = listener
        self._error = error
        self.failures = failures

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(self._error, os.strerror(self._error))
        return self._listener.accept()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


async def accepted_by(listener) -> list[str | None]:
    """Accept one connection, and return the shortages that were reported meanwhile."""
    shortages: list[str | None] = []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:

            def take(accepted: socket.socket, _address: object) -> None:
                assert not accepted.getblocking()
                accepted.close()
                tasks.cancel_scope.cancel()

            tasks.start_soon(lambda: accept_forever(listener, take, exhausted=shortages.append))
    return shortages


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_shortage_is_reported_once_and_accepting_goes_on(listener, error):
    with socket.create_connection(listener.getsockname()):
        assert await accepted_by(Failing(listener, error, 2)) == [os.strerror(error)]


@pytest.mark.parametrize(
    "error", [errno.EAGAIN, errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETUNREACH, errno.EHOSTDOWN]
)
async def test_error_of_one_connection_does_not_end_the_loop(listener, error):
    with socket.create_connection(listener.getsockname()):
        assert await accepted_by(Failing(listener, error, 3)) == []


async def test_failure_of_the_listener_itself_ends_it(listener):
    with socket.create_connection(listener.getsockname()), pytest.raises(OSError, match="Bad file"):
        await accepted_by_alone(Failing(listener, errno.EBADF, 1))


async def accepted_by_alone(listener) -> None:
    await accept_forever(listener, lambda *_: None, exhausted=lambda _: None)


async def test_connection_that_cannot_be_taken_is_closed(listener):
    def take(_accepted: socket.socket, _address: object) -> None:
        raise ZeroDivisionError

    with socket.create_connection(listener.getsockname(), timeout=60) as client:
        with pytest.raises(ZeroDivisionError):
            await accept_forever(listener, take, exhausted=lambda _: None)
        assert client.recv(1) == b""


async def test_flood_does_not_hold_off_the_end(listener):
    """A listener that is ready each time, as in a flood, which would be over only much later."""
    flood = Failing(listener, errno.ECONNABORTED, 20_000)
    with socket.create_connection(listener.getsockname()):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accepted_by_alone, flood)
            while flood.failures > 19_990:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert flood.failures > 0


async def test_client_that_resets_while_it_is_denied(monkeypatch, listener):
    client = socket.create_connection(listener.getsockname())
    connection, _ = listener.accept()

    async def adopt_and_reset(accepted: socket.socket) -> SocketStream:
        stream = await adopt(accepted)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        return stream

    monkeypatch.setattr("stapsrv.supervisor.server.accept.adopt", adopt_and_reset)
    await deny(connection)
    assert connection.fileno() == -1


async def test_denied_client_that_floods_is_left_in_time(monkeypatch):
    monkeypatch.setattr("stapsrv.supervisor.server.accept._GOODBYE_S", 0.2)
    ours, theirs = socket.socketpair()

    def flood() -> bool:
        give_up = time.monotonic() + 15
        with theirs:
            theirs.settimeout(15)
            while time.monotonic() < give_up:
                try:
                    theirs.send(bytes(65_536))
                except ConnectionError:
                    return True
        return False

    ended = []
    ours.setblocking(False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deny, ours)
        ended.append(await anyio.to_thread.run_sync(flood))
    assert ended == [True]
