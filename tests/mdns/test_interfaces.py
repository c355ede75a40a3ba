"""What the kernel tells of this host's links."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from kit.control import descriptors

from stapsrv.mdns import interfaces
from stapsrv.mdns.interfaces import LinkMonitor, read_network


def message(kind: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload + bytes(-len(payload) % 4)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def link(index: int, name: str, flags: int) -> bytes:
    return message(16, struct.pack("=BxHiII", 0, 1, index, flags, 0) + attribute(3, name.encode() + b"\0"))


def address(
    index: int, text: str, *, flags: int = 0, wide: int | None = None, peer: str | None = None
) -> bytes:
    found = ipaddress.ip_interface(text)
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    payload = struct.pack("=BBBBi", family, found.network.prefixlen, flags, 0, index)
    payload += attribute(1, ipaddress.ip_address(peer or found.ip).packed)
    if peer is not None:
        payload += attribute(2, found.ip.packed)
    if wide is not None:
        payload += attribute(8, struct.pack("=I", wide))
    return message(20, payload)


DONE = message(3, struct.pack("=i", 0))


class Kernel:
    """Answers each question with what is ready."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds < 60

    def send(self, data: bytes) -> None:
        assert len(data) == 20

    def recv(self, _size: int) -> bytes:
        return self._answers.pop(0)


def read(monkeypatch: pytest.MonkeyPatch, *answers: bytes):
    monkeypatch.setattr(interfaces, "_open_socket", lambda: Kernel(*answers))
    return read_network()


def test_this_host():
    network = read_network()
    (loopback,) = (each for each in network.links if each.name == "lo")
    assert loopback.loopback
    assert loopback.index == 1
    assert all(each.ip in network.own for link in network.links for each in link.addresses)


def test_links_and_their_addresses(monkeypatch):
    network = read(
        monkeypatch,
        # Messages come several at a time, in as many parts as the kernel likes.
        address(1, "127.0.0.1/8") + address(2, "192.0.2.1/24"),
        address(2, "192.0.2.2/24", flags=0x01) + address(3, "203.0.113.1/32", peer="203.0.113.2") + DONE,
        link(1, "lo", 0x49) + link(2, "eth0", 0x1043),
        link(3, "tun0", 0x1051) + link(4, "eth1", 0x1003) + DONE,
    )
    lo, eth0, tun0, eth1 = network.links
    assert (lo.name, lo.up, lo.loopback, lo.multicast) == ("lo", True, True, False)
    assert (eth0.up, eth0.loopback, eth0.multicast, eth0.point_to_point) == (True, False, True, False)
    assert [str(each) for each in eth0.addresses] == ["192.0.2.1/24", "192.0.2.2/24"]
    assert tun0.point_to_point
    assert [str(each.ip) for each in tun0.addresses] == ["203.0.113.1"]
    assert (eth1.up, eth1.addresses) == (False, ())


@pytest.mark.parametrize(
    ("flags", "usable"),
    [
        pytest.param(0x80, True, id="permanent"),
        pytest.param(0x01, False, id="temporary"),
        pytest.param(0xC0, False, id="tentative"),
        pytest.param(0x88, False, id="somebody else's"),
        pytest.param(0x20, False, id="deprecated"),
        pytest.param(0x180, True, id="of an automatic prefix"),
    ],
)
def test_addresses_that_are_no_good_to_announce_are_still_ours(monkeypatch, flags, usable):
    answers = (address(2, "2001:db8::1/64", wide=flags) + DONE, link(2, "eth0", 0x1043) + DONE)
    network = read(monkeypatch, *answers)
    assert [str(address) for address in network.own] == ["2001:db8::1"]
    assert bool(network.links[0].addresses) is usable


def test_refusal(monkeypatch):
    with pytest.raises(PermissionError):
        read(monkeypatch, message(2, struct.pack("=i", -1)))


@pytest.mark.anyio
async def test_monitor_closes():
    before = descriptors()
    monitor = LinkMonitor()
    assert descriptors() > before
    monitor.close()
    assert descriptors() <= before
