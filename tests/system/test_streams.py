"""Accepted connections as streams, and peers that have left before."""

from __future__ import annotations

import socket

import pytest
from kit.client import reset_at_once
from kit.loops import every_loop

from stapsrv.system.streams import adopt

pytestmark = [pytest.mark.anyio, every_loop]


async def test_a_stream_owns_its_connection():
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"x")
        async with await adopt(ours) as stream:
            assert await stream.receive() == b"x"
        assert theirs.recv(1) == b""


async def test_connection_that_was_reset_before_is_an_error_and_closed():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reset_at_once(listener.getsockname()[1])
        connection, _ = listener.accept()
        with pytest.raises(ConnectionResetError, match="Connection reset by peer"):
            await adopt(connection)
        assert connection.fileno() == -1


async def test_any_other_error_is_passed_on_and_closes_the_socket():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind("")
        datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        datagrams.connect(other.getsockname())
        with pytest.raises(ValueError, match="socket type"):
            await adopt(datagrams)
        assert datagrams.fileno() == -1
