"""The listening socket and the accept loop."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import anyio
import pytest

from stapsrv.errors import ConfigError
from stapsrv.supervisor.server.listener import Peer, address_of, open_listener, open_listeners, reset

pytestmark = pytest.mark.anyio


@pytest.fixture
def listener():
    made = open_listener(0)
    yield made
    made.close()


def connect(listener: socket.socket, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, address_of(listener).port), timeout=60)


def ipv6_works() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_one_port_serves_both_families(listener, host):
    if host == "::1" and not ipv6_works():
        pytest.skip("this host has no IPv6")
    with connect(listener, host) as client:
        with anyio.fail_after(60):
            await anyio.wait_readable(listener)
        accepted, sockaddr = listener.accept()
        accepted.close()
        assert Peer.of(sockaddr) == Peer(host, client.getsockname()[1])


async def test_reset_peer_sees_a_reset(listener):
    with connect(listener) as client:
        with anyio.fail_after(60):
            await anyio.wait_readable(listener)
        reset(listener.accept()[0])
        client.setblocking(False)
        with anyio.fail_after(60):
            await anyio.wait_readable(client)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize(
    ("addresses", "reached", "unreached"),
    [
        (["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2", "::1"]),
        (["127.0.0.1", "::1"], ["127.0.0.1", "::1"], ["127.0.0.2"]),
        (["::"], ["::1"], ["127.0.0.1"]),
        (["0.0.0.0"], ["127.0.0.1", "127.0.0.2"], ["::1"]),
        (["127.0.0.1", "0.0.0.0", "::", "::"], ["127.0.0.1", "127.0.0.2", "::1"], []),
    ],
)
def test_a_server_may_listen_on_some_addresses_on_one_port(addresses, reached, unreached):
    if not ipv6_works():
        pytest.skip("this host has no IPv6")
    listeners = open_listeners(0, addresses)
    try:
        (port,) = {address_of(listener).port for listener in listeners}
        for host in reached:
            socket.create_connection((host, port), timeout=60).close()
        for host in unreached:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, port), timeout=60)
    finally:
        for listener in listeners:
            listener.close()


def test_a_port_that_is_taken_on_the_second_address_is_not_picked(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            open_listeners(taken, ["127.0.0.1", "127.0.0.2"])
        assert str(caught.value) == (
            f"address 127.0.0.2, port {taken}: is in use by another program; "
            "give a free one, or 0 for any, with --port"
        )
        # Nothing is left behind on the first address.
        socket.create_server(("127.0.0.1", taken)).close()


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "fe80::1%nosuch0"])
def test_an_address_of_another_host_is_one_clear_line(address):
    with pytest.raises(ConfigError) as caught:
        open_listeners(0, [address])
    assert str(caught.value) == (
        f"address {address}: is not one of this host's; give another one, or none for all, with --listen"
    )


def test_taken_port_is_one_clear_line(listener):
    port = address_of(listener).port
    with pytest.raises(ConfigError) as caught:
        open_listener(port)
    assert str(caught.value) == (
        f"port {port}: is in use by another program; give a free one, or 0 for any, with --port"
    )


def test_port_taken_on_ipv4_alone_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="in use"):
            open_listener(other.getsockname()[1])


@pytest.mark.skipif(
    os.geteuid() == 0 or int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80,
    reason="this user may take every port",
)
def test_privileged_port_is_one_clear_line():
    with pytest.raises(ConfigError) as caught:
        open_listener(80)
    assert str(caught.value) == "port 80: is reserved for root; give one above 1023 with --port"


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [
        (("127.0.0.1", 9), "127.0.0.1:9"),
        (("::ffff:127.0.0.1", 9, 0, 0), "127.0.0.1:9"),
        (("::1", 9, 0, 0), "[::1]:9"),
        (("fe80::1%eth0", 9, 0, 2), "[fe80::1%eth0]:9"),
    ],
)
def test_peers_are_named_as_people_write_them(sockaddr, text):
    assert str(Peer.of(sockaddr)) == text
