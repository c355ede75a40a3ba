"""What the kernel hands to a socket that hears its own link alone; the link is the loopback."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from stapsrv.mdns.zeroconf_per_link import drop_routed_packets

GROUP = "224.0.0.251"


@contextlib.contextmanager
def receiving(family: socket.AddressFamily) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        if family == socket.AF_INET6:
            # For both protocols, as zeroconf has it.
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        receiver.bind(("", 0))
        receiver.settimeout(10)
        drop_routed_packets(receiver)
        yield receiver


def send(word: bytes, address: str, port: int, hops: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        if family == socket.AF_INET6:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
        else:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sender.sendto(word, (address, port))


@pytest.mark.parametrize(
    ("family", "address"),
    [
        pytest.param(socket.AF_INET, "127.0.0.1", id="IPv4"),
        pytest.param(socket.AF_INET6, "::1", id="IPv6"),
        pytest.param(socket.AF_INET6, "127.0.0.1", id="IPv4 to a socket of both"),
    ],
)
def test_packets_that_a_router_may_have_passed_on_are_not_heard(family, address):
    with receiving(family) as receiver:
        port = receiver.getsockname()[1]
        for hops in (254, 64, 1):
            send(b"far", address, port, hops)
        send(b"near", address, port, 255)
        assert receiver.recv(100) == b"near"


def test_what_is_said_to_all_is_heard():
    """No router passes it on, so its hops say nothing."""
    with receiving(socket.AF_INET) as receiver:
        member = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        send(b"to all", GROUP, receiver.getsockname()[1], 1)
        assert receiver.recv(100) == b"to all"
