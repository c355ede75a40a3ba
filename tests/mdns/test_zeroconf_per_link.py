"""What of zeroconf's packets is said on which link. No packet leaves: the library's own sending is caught."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace

import attrs
import pytest
from kit.responder import link
from zeroconf import ServiceInfo, Zeroconf
from zeroconf._dns import DNSAddress, DNSQuestion
from zeroconf._protocol.outgoing import DNSOutgoing
from zeroconf._services.registry import ServiceRegistry

from stapsrv.mdns.records import SERVICE_TYPE
from stapsrv.mdns.zeroconf_per_link import LinkwiseZeroconf

WIRED = link("eth0", "192.0.2.1/24", "fe80::1/64", index=2)
WIRELESS = link("wlan0", "198.51.100.1/24", "2001:db8::1/64", index=3)
NAME = f"Systemtap Compile Server on build.{SERVICE_TYPE}"
RESPONSE = 0x8400


@attrs.frozen
class Said:
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


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Said]:
    packets: list[Said] = []

    def send(_self, out, addr, _port, _scope, transport):
        packets.append(Said(transport.name, out))

    monkeypatch.setattr(Zeroconf, "async_send", send)
    return packets


@pytest.fixture
def zeroconf() -> LinkwiseZeroconf:
    """One that never opened a socket."""
    made = LinkwiseZeroconf.__new__(LinkwiseZeroconf)
    made._links = (WIRED, WIRELESS)
    made._yielded = frozenset()
    made._limits = {}
    made.registry = ServiceRegistry()
    made.engine = SimpleNamespace(
        senders=[
            sender("eth0 IPv4", "192.0.2.1"),
            sender("wlan0 IPv4", "198.51.100.1"),
            sender("eth0 IPv6", "fe80::1", 2),
            sender("wlan0 IPv6", "2001:db8::1", 3),
            sender("gone IPv4", "203.0.113.1"),
        ]
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


def test_each_link_and_protocol_hears_its_own_addresses(zeroconf, info, said):
    zeroconf.registry.async_add(info)
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert {packet.sender: packet.addresses for packet in said} == {
        "eth0 IPv4": {"192.0.2.1"},
        "wlan0 IPv4": {"198.51.100.1"},
        "eth0 IPv6": {"fe80::1"},
        "wlan0 IPv6": {"2001:db8::1"},
    }
    assert said[0].kinds == ["DNSAddress", "DNSPointer", "DNSService", "DNSText"]
    assert all(packet.out.packets() for packet in said)


@pytest.mark.parametrize(
    ("listened", "heard"),
    [
        (["192.0.2.1"], ["eth0 IPv4"]),
        (["0.0.0.0", "2001:db8::1"], ["eth0 IPv4", "wlan0 IPv4", "wlan0 IPv6"]),
        (["203.0.113.9"], []),
    ],
)
def test_a_server_is_heard_of_only_where_it_listens(zeroconf, info, said, listened, heard):
    zeroconf.registry.async_add(info)
    zeroconf.limit(info.key, frozenset(ipaddress.ip_address(address).packed for address in listened))
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    services = [packet.sender for packet in said if {"DNSService", "DNSPointer"} & set(packet.kinds)]
    assert services == heard
    said.clear()
    zeroconf.limit(info.key, None)
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert len([packet for packet in said if "DNSService" in packet.kinds]) == 4


def test_question_for_an_address_is_answered_where_there_is_one(zeroconf, info, said):
    zeroconf.registry.async_add(info)
    out = DNSOutgoing(RESPONSE)
    for record in info.dns_addresses():
        out.add_answer_at_time(record, 0)
    zeroconf.async_send(out)
    assert [packet.sender for packet in said] == ["eth0 IPv4", "wlan0 IPv4", "eth0 IPv6", "wlan0 IPv6"]


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
def test_peer_that_is_answered_alone_hears_the_addresses_of_its_link(
    zeroconf, info, said, peer, scope, addresses
):
    zeroconf.registry.async_add(info)
    out = DNSOutgoing(RESPONSE, multicast=False, id_=7)
    out.add_answer_at_time(info.dns_service(), 0)
    for record in info.dns_addresses():
        out.add_additional_answer(record)
    zeroconf.async_send(out, peer, 40000, scope, sender("listener", "0.0.0.0"))
    assert [packet.addresses for packet in said] == [addresses]
    assert said[0].out.id == 7


def test_nothing_is_said_of_a_service_that_is_gone(zeroconf, info, said):
    """An answer may have waited while the goodbye was said (RFC 6762, 14)."""
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None, broadcast_addresses=False))
    assert said == []


def test_goodbyes_are_to_services_and_not_to_the_host(zeroconf, info, said):
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, 0))
    assert {tuple(packet.kinds) for packet in said} == {("DNSPointer", "DNSService", "DNSText")}


def test_host_s_name_that_is_yielded_is_not_said(zeroconf, info, said):
    zeroconf.registry.async_add(info)
    zeroconf.yield_host("build.local.")
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert {frozenset(packet.addresses) for packet in said} == {frozenset()}
    said.clear()
    zeroconf.keep_host("build.local.")
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert said[0].addresses == {"192.0.2.1"}


def test_links_that_are_left_hear_goodbye(zeroconf, info, said):
    zeroconf.registry.async_add(info)
    zeroconf.async_leave((WIRED,))
    assert [packet.sender for packet in said] == ["wlan0 IPv4", "wlan0 IPv6"]
    assert {record.ttl for packet in said for record, _ in packet.out.answers} == {0}
    # And nothing after it, for as long as the senders are still there.
    said.clear()
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
    assert [packet.sender for packet in said] == ["eth0 IPv4", "eth0 IPv6"]


def test_questions_go_out_whole(zeroconf, info, said):
    out = DNSOutgoing(0)
    out.add_question(DNSQuestion(NAME, 255, 1))
    out.authorities = [info.dns_service(), *info.dns_addresses()]
    out.add_answer_at_time(info.dns_pointer(), 0)
    zeroconf.async_send(out)
    assert len(said) == 4
    assert all(len(packet.out.questions) == len(packet.out.answers) == 1 for packet in said)
    assert [len(packet.out.authorities) for packet in said] == [2, 2, 2, 2]
