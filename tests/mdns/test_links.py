"""On which links servers are advertised, and under which addresses."""

from __future__ import annotations

import ipaddress

import pytest
from kit.responder import link, network

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
def test_choice(there, wanted, chosen):
    assert [each.name for each in there.choose(wanted).links] == chosen.split()


def test_what_is_named_and_not_there():
    assert EVERYTHING.choose(("wlan0", "eth1", "fe80::1", "fe80:0::99", "eth7")).absent == (
        "eth1",
        "fe80:0::99",
        "eth7",
    )
    assert EVERYTHING.choose(()).absent == ()


def test_addresses_of_this_host_stay_known():
    assert EVERYTHING.choose(("eth0",)).own == EVERYTHING.own


def test_link_that_is_named_by_address_announces_no_other():
    (narrowed,) = EVERYTHING.choose(("198.51.100.2",)).links
    assert [str(address) for address in narrowed.announced] == ["198.51.100.2"]


def test_link_local_addresses_are_announced_where_there_is_no_other():
    assert [str(address) for address in ETHERNET.announced] == ["192.0.2.1", "fe80::1"]
    assert [str(address) for address in WIRELESS.announced] == [
        "198.51.100.1",
        "198.51.100.2",
        "2001:db8::1",
    ]


def test_reach():
    assert ETHERNET.reaches(ipaddress.ip_address("192.0.2.77"))
    assert ETHERNET.reaches(ipaddress.ip_address("fe80::77"))
    assert not ETHERNET.reaches(ipaddress.ip_address("198.51.100.77"))
