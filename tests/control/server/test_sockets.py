"""Sending and receiving: nothing is lost, and everybody has a turn."""

from __future__ import annotations

import socket

import anyio
import pytest

from stapsrv.control.server.connection import receive, send_all

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
    with anyio.fail_after(20):
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
