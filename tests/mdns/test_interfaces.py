"""This host's links, as the kernel reports them."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from kit.control import descriptors
from kit.responder import link, network

from stapsrv.mdns import interfaces
from stapsrv.mdns.interfaces import LinkMonitor, read_network


def message(kind: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload + bytes(-len(payload) % 4)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def link_message(index: int, name: str, flags: int) -> bytes:
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


def test_read_network_of_this_host():
    found = read_network()
    (loopback,) = (each for each in found.links if each.name == "lo")
    assert loopback.loopback
    assert loopback.index == 1
    assert all(each.ip in found.own for link in found.links for each in link.addresses)


def test_addresses_are_assigned_to_their_links(monkeypatch):
    found = read(
        monkeypatch,
        # Messages come several at a time, in as many parts as the kernel likes.
        address(1, "127.0.0.1/8") + address(2, "192.0.2.1/24"),
        address(2, "192.0.2.2/24", flags=0x01) + address(3, "203.0.113.1/32", peer="203.0.113.2") + DONE,
        link_message(1, "lo", 0x49) + link_message(2, "eth0", 0x1043),
        link_message(3, "tun0", 0x1051) + link_message(4, "eth1", 0x1003) + DONE,
    )
    lo, eth0, tun0, eth1 = found.links
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
def test_unusable_addresses_are_own_but_not_announced(monkeypatch, flags, usable):
    answers = (address(2, "2001:db8::1/64", wide=flags) + DONE, link_message(2, "eth0", 0x1043) + DONE)
    found = read(monkeypatch, *answers)
    assert [str(address) for address in found.own] == ["2001:db8::1"]
    assert bool(found.links[0].addresses) is usable


def test_kernel_error_is_raised(monkeypatch):
    with pytest.raises(PermissionError):
        read(monkeypatch, message(2, struct.pack("=i", -1)))


@pytest.mark.anyio
async def test_monitor_closes_its_socket():
    before = descriptors()
    monitor = LinkMonitor()
    assert descriptors() > before
    monitor.close()
    assert descriptors() <= before


LOOPBACK = link("lo", "127.0.0.1/8", "::1/128", index=1, multicast=False, loopback=True)
ETHERNET = link("eth0", "192.0.2.1/24", "fe80::1/64")
WIRELESS = link("wlan0", "198.51.100.1/24", "198.51.100.2/24", "2001:db8::1/64", "fe80::2/64", index=3)
TUNNEL = link("tun0", "203.0.113.1/32", index=4, point_to_point=True)
UNPLUGGED = link("eth1", "192.0.2.2/24", index=5, up=False)
BARE = link("eth2", index=6)
DUMB = link("dummy0", "192.0.2.3/24", index=7, multicast=False)
EVERYTHING = network(LOOPBACK, ETHERNET, WIRELESS, TUNNEL, UNPLUGGED, BARE, DUMB)


@pytest.mark.parametrize(
    ("there", "wanted", "chosen"),
    [
        pytest.param(EVERYTHING, (), "eth0 wlan0", id="all that are up and can multicast"),
        pytest.param(network(LOOPBACK, UNPLUGGED, BARE), (), "lo", id="loopback if there is nothing else"),
        pytest.param(network(LOOPBACK, TUNNEL), (), "lo", id="tunnels are none"),
        pytest.param(network(UNPLUGGED), (), "", id="nothing at all"),
        pytest.param(EVERYTHING, ("wlan0",), "wlan0", id="by name"),
        pytest.param(EVERYTHING, ("lo", "tun0"), "lo tun0", id="what is named need not multicast"),
        pytest.param(EVERYTHING, ("eth1", "eth7"), "", id="what is not up is not there"),
        pytest.param(EVERYTHING, ("198.51.100.2", "fe80::1"), "eth0 wlan0", id="by address"),
        pytest.param(EVERYTHING, ("192.0.2.9",), "", id="an address that is nobody's"),
    ],
)
def test_selection_of_links(there, wanted, chosen):
    assert [each.name for each in there.select(wanted).links] == chosen.split()


def test_missing_names_and_addresses_are_listed():
    assert EVERYTHING.select(("wlan0", "eth1", "fe80::1", "fe80:0::99", "eth7")).missing == (
        "eth1",
        "fe80:0::99",
        "eth7",
    )
    assert EVERYTHING.select(()).missing == ()


def test_selection_keeps_all_own_addresses():
    assert EVERYTHING.select(("eth0",)).own == EVERYTHING.own


def test_link_selected_by_address_announces_only_that_address():
    (filtered,) = EVERYTHING.select(("198.51.100.2",)).links
    assert [str(address) for address in filtered.announced] == ["198.51.100.2"]


def test_link_local_addresses_are_announced_only_without_wider_ones():
    assert [str(address) for address in ETHERNET.announced] == ["192.0.2.1", "fe80::1"]
    assert [str(address) for address in WIRELESS.announced] == [
        "198.51.100.1",
        "198.51.100.2",
        "2001:db8::1",
    ]


def test_link_reaches_only_its_own_networks():
    assert ETHERNET.reaches(ipaddress.ip_address("192.0.2.77"))
    assert ETHERNET.reaches(ipaddress.ip_address("fe80::77"))
    assert not ETHERNET.reaches(ipaddress.ip_address("198.51.100.77"))
