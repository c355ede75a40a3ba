"""Steps performed with sockets."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from stapsrv.client import blocking
from stapsrv.client.address import Address
from stapsrv.client.errors import ServerUnavailable
from stapsrv.client.exchange import exchange
from stapsrv.client.trust import Certificates

NOBODY = Certificates(frozenset(), "nobody")


def run(address):
    return blocking.run(exchange(Address.parse(address), b"", NOBODY))


def test_port_where_nobody_listens_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServerUnavailable, match=f"^localhost:{port}: Connection refused$"):
        run(f"localhost:{port}")


def test_host_without_an_address_is_named(monkeypatch):
    def fail(*_args, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ServerUnavailable, match=r"^build\.invalid:5001: Name or service not known$"):
        run("build.invalid:5001")


def test_resolver_that_hangs_is_left(monkeypatch):
    release = socket.socketpair()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: release[0].recv(1))
    monkeypatch.setattr("stapsrv.client.exchange.CONNECT_S", 0.1)
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"no answer within 0\.1 s"):
        run("build:5001")
    assert time.monotonic() - began < 10
    release[1].close()
    for thread in threading.enumerate():
        if thread.name == "resolver":
            thread.join(10)
    release[0].close()


def test_server_that_says_nothing_is_left(monkeypatch):
    monkeypatch.setattr("stapsrv.client.exchange.CONNECT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(ServerUnavailable, match=r"no answer within 0\.1 s"):
            run(f"127.0.0.1:{listener.getsockname()[1]}")
