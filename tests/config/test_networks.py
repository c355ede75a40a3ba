"""Addresses and networks as people write them."""

from __future__ import annotations

import pytest

from stapsrv.config.networks import parse_listen_address, parse_network

NETWORK = (
    "a network like 10.0.0.0/8 or 2001:db8::/32, an address, all, or none (host names are not looked up)"
)
ADDRESS = (
    "an IPv4 or IPv6 address without a port, like 192.0.2.1 or fe80::1%eth0 (host names are not looked up)"
)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
        ("2001:db8::7", "2001:db8::7/128"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::/0", "::/0"),
        ("all", "all"),
        ("none", "none"),
    ],
)
def test_networks(text, network):
    assert parse_network(text) == network
    assert parse_network(network) == network


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::", "::"),
        ("0.0.0.0", "0.0.0.0"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_listen_addresses(text, address):
    assert parse_listen_address(text) == address


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_network, "", NETWORK),
        (parse_network, "10.0.0.0/33", NETWORK),
        (parse_network, "10.0.0/8", NETWORK),
        (parse_network, "example.org", NETWORK),
        (parse_network, "10.0.0.0/8,192.0.2.0/24", NETWORK),
        (parse_network, " 10.0.0.0/8", NETWORK),
        (parse_network, "10.1.2.3/8", "a network without bits after its prefix, like 10.0.0.0/8"),
        (parse_network, "fe80::1%eth0", "a network without an interface, like fe80::1/128"),
        (parse_network, "fe80::%eth0/64", "a network without an interface, like fe80::/64"),
        (parse_network, "fe80::1%eth0/64", "a network without an interface, like fe80::/64"),
        (parse_network, "2001:db8::1/32", "a network without bits after its prefix, like 2001:db8::/32"),
        (parse_listen_address, "", ADDRESS),
        (parse_listen_address, "localhost", ADDRESS),
        (parse_listen_address, "192.0.2.1:5000", ADDRESS),
        (parse_listen_address, "[::1]", ADDRESS),
        (parse_listen_address, "192.0.2.0/24", ADDRESS),
        (parse_listen_address, "fe80::1", "a link-local address with its interface, like fe80::1%eth0"),
        (parse_listen_address, "224.0.0.251", "an address of one host, not of many"),
        (parse_listen_address, "ff02::fb%eth0", "an address of one host, not of many"),
    ],
)
def test_what_is_wrong_is_told(parse, text, expected):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - all of the text is looked at
        parse(text)
    assert str(caught.value) == expected
