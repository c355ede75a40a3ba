"""Which part of zeroconf's packets is sent on which link; the library's own sending is replaced."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import attrs
import pytest
from kit.responder import link
from zeroconf import DNSAddress, DNSOutgoing, DNSQuestion, ServiceInfo, ServiceRegistry, Zeroconf

from stapsrv.mdns.records import SERVICE_TYPE
from stapsrv.mdns.zeroconf_per_link import PerLinkZeroconf, drop_routed_packets

WIRED = link("eth0", "192.0.2.1/24", "fe80::1/64", index=2)
WIRELESS = link("wlan0", "198.51.100.1/24", "2001:db8::1/64", index=3)
NAME = f"Systemtap Compile Server on build.{SERVICE_TYPE}"
RESPONSE = 0x8400


@attrs.frozen
class Sent:
    """A packet as it goes out: on which sender, and what it holds."""

    sender: str
    out: DNSOutgoing

    @property
    def addresses(self) -> set[str]:
        records = [record for record, _ in self.out.answers] + self.out.additionals
        return {
            str(ipaddress.ip_address(record.address)) for record in records if isinstance(record, DNSAddress)
        }

    @property
    def kinds(self) -> list[str]:
        records = [record for record, _ in self.out.answers] + self.out.additionals
        return sorted(type(record).__name__ for record in records)


def sender(name: str, address: str, index: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, is_ipv6=":" in address, sock_name=(address, 5353), multicast_index=index
    )


LISTENER = sender("listener", "0.0.0.0")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    packets: list[Sent] = []

    def send(_self, out, addr, _port, _scope, transport):
        packets.append(Sent(transport.name, out))

    monkeypatch.setattr(Zeroconf, "async_send", send)
    return packets


@pytest.fixture
def zeroconf() -> PerLinkZeroconf:
    """One that never opened a socket."""
    made = PerLinkZeroconf.__new__(PerLinkZeroconf)
    made._links = (WIRED, WIRELESS)
    made.suppressed_hosts = frozenset()
    made._restrictions = {}
    made.registry = ServiceRegistry()
    made.engine = SimpleNamespace(
        senders=[
            sender("eth0 IPv4", "192.0.2.1"),
            sender("wlan0 IPv4", "198.51.100.1"),
            sender("eth0 IPv6", "fe80::1", 2),
            sender("wlan0 IPv6", "2001:db8::1", 3),
            sender("gone IPv4", "203.0.113.1"),
        ],
        readers=[LISTENER],
    )
    return made


@pytest.fixture
def info() -> ServiceInfo:
    return ServiceInfo(
        SERVICE_TYPE,
        NAME,
        port=5001,
        properties=b"\x01a",
        server="build.local.",
        addresses=[address.packed for each in (WIRED, WIRELESS) for address in each.announced],
    )


def test_each_link_and_protocol_gets_its_own_addresses(zeroconf, info, sent):
    zeroconf.registry.async_add(info)
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert {packet.sender: packet.addresses for packet in sent} == {
        "eth0 IPv4": {"192.0.2.1"},
        "wlan0 IPv4": {"198.51.100.1"},
        "eth0 IPv6": {"fe80::1"},
        "wlan0 IPv6": {"2001:db8::1"},
    }
    assert sent[0].kinds == ["DNSAddress", "DNSPointer", "DNSService", "DNSText"]
    assert all(packet.out.packets() for packet in sent)


@pytest.mark.parametrize(
    ("listened", "senders"),
    [
        (["192.0.2.1"], ["eth0 IPv4"]),
        (["0.0.0.0", "2001:db8::1"], ["eth0 IPv4", "wlan0 IPv4", "wlan0 IPv6"]),
        (["203.0.113.9"], []),
    ],
)
def test_service_is_announced_only_where_it_listens(zeroconf, info, sent, listened, senders):
    zeroconf.registry.async_add(info)
    zeroconf.restrict(info.key, frozenset(ipaddress.ip_address(address).packed for address in listened))
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    services = [packet.sender for packet in sent if {"DNSService", "DNSPointer"} & set(packet.kinds)]
    assert services == senders
    sent.clear()
    zeroconf.restrict(info.key, None)
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert len([packet for packet in sent if "DNSService" in packet.kinds]) == 4


def test_address_query_is_answered_on_each_link_that_has_one(zeroconf, info, sent):
    zeroconf.registry.async_add(info)
    out = DNSOutgoing(RESPONSE)
    for record in info.dns_addresses():
        out.add_answer_at_time(record, 0)
    zeroconf.async_send(out)
    assert [packet.sender for packet in sent] == ["eth0 IPv4", "wlan0 IPv4", "eth0 IPv6", "wlan0 IPv6"]


@pytest.mark.parametrize(
    ("peer", "scope", "addresses"),
    [
        ("192.0.2.77", (), {"192.0.2.1"}),
        ("::ffff:198.51.100.77", (0, 0), {"198.51.100.1"}),
        ("fe80::77%3", (0, 3), {"2001:db8::1"}),
        ("fe80::77", (0, 2), {"fe80::1"}),
        ("2001:db8::77", (0, 0), {"2001:db8::1"}),
        ("203.0.113.77", (), set()),
    ],
)
def test_unicast_answer_has_the_addresses_of_the_peers_link(zeroconf, info, sent, peer, scope, addresses):
    zeroconf.registry.async_add(info)
    out = DNSOutgoing(RESPONSE, multicast=False, id_=7)
    out.add_answer_at_time(info.dns_service(), 0)
    for record in info.dns_addresses():
        out.add_additional_answer(record)
    zeroconf.async_send(out, peer, 40000, scope, LISTENER)
    assert [packet.addresses for packet in sent] == [addresses]
    assert sent[0].out.id == 7


def test_answer_after_the_goodbye_is_not_sent(zeroconf, info, sent):
    """An answer may have waited while the goodbye was sent (RFC 6762, 14)."""
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None, broadcast_addresses=False))
    assert sent == []


def test_goodbye_leaves_out_the_host_addresses(zeroconf, info, sent):
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, 0))
    assert {tuple(packet.kinds) for packet in sent} == {("DNSPointer", "DNSService", "DNSText")}


def test_suppressed_host_name_is_not_announced(zeroconf, info, sent):
    zeroconf.registry.async_add(info)
    zeroconf.suppressed_hosts |= {"build.local."}
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert {frozenset(packet.addresses) for packet in sent} == {frozenset()}
    sent.clear()
    zeroconf.suppressed_hosts -= {"build.local."}
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert sent[0].addresses == {"192.0.2.1"}


def test_leaving_a_link_says_goodbye_there_and_nothing_after(zeroconf, info, sent):
    zeroconf.registry.async_add(info)
    zeroconf.async_leave((WIRED,))
    assert [packet.sender for packet in sent] == ["wlan0 IPv4", "wlan0 IPv6"]
    assert {record.ttl for packet in sent for record, _ in packet.out.answers} == {0}
    # And nothing after it, for as long as the senders are still there.
    sent.clear()
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert [packet.sender for packet in sent] == ["eth0 IPv4", "eth0 IPv6"]


def test_queries_are_sent_with_all_questions_and_known_answers(zeroconf, info, sent):
    out = DNSOutgoing(0)
    out.add_question(DNSQuestion(NAME, 255, 1))
    out.authorities = [info.dns_service(), *info.dns_addresses()]
    out.add_answer_at_time(info.dns_pointer(), 0)
    zeroconf.async_send(out)
    assert len(sent) == 4
    assert all(len(packet.out.questions) == len(packet.out.answers) == 1 for packet in sent)
    assert [len(packet.out.authorities) for packet in sent] == [2, 2, 2, 2]


GROUP = "224.0.0.251"


@contextlib.contextmanager
def receiving(family: socket.AddressFamily) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        if family == socket.AF_INET6:
            # For both protocols, as zeroconf has it.
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        receiver.bind(("", 0))
        receiver.settimeout(60)
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
def test_routed_unicast_packets_are_dropped(family, address):
    with receiving(family) as receiver:
        port = receiver.getsockname()[1]
        for hops in (254, 64, 1):
            send(b"far", address, port, hops)
        send(b"near", address, port, 255)
        assert receiver.recv(100) == b"near"


def test_multicast_packets_are_received_whatever_their_hops():
    """No router passes it on, so its hops say nothing."""
    with receiving(socket.AF_INET) as receiver:
        member = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        send(b"to all", GROUP, receiver.getsockname()[1], 1)
        assert receiver.recv(100) == b"to all"


def test_zeroconf_can_change_its_interfaces():
    """The lower bound of the dependency: without a socket, nothing else here would notice an older one."""
    assert callable(Zeroconf.update_interfaces)
