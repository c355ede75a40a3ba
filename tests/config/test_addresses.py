"""Addresses, networks, interfaces and host names as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.config.addresses import (
    OFF,
    FarmAddress,
    MetricsAddress,
    parse_farm_address,
    parse_host,
    parse_interfaces,
    parse_listen_address,
    parse_metrics_address,
    parse_network,
)

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
def test_wrong_text_is_refused_with_what_was_expected(parse, text, expected):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - all of the text is compared
        parse(text)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("9817", MetricsAddress("127.0.0.1", 9817), "127.0.0.1:9817"),
        (":9817", MetricsAddress("127.0.0.1", 9817), "127.0.0.1:9817"),
        ("localhost:0", MetricsAddress("127.0.0.1", 0), "127.0.0.1:0"),
        ("0.0.0.0:9817", MetricsAddress("0.0.0.0", 9817), "0.0.0.0:9817"),
        ("[::]:9817", MetricsAddress("::", 9817), "[::]:9817"),
        ("[::1]:1", MetricsAddress("::1", 1), "[::1]:1"),
        ("unix:/run/m.sock", MetricsAddress(path=Path("/run/m.sock")), "unix:/run/m.sock"),
        ("unix:m.sock", MetricsAddress(path=Path("m.sock")), "unix:m.sock"),
        ("off", OFF, "off"),
        ("No", OFF, "off"),
    ],
)
def test_metrics_addresses(text, address, shown):
    assert parse_metrics_address(text) == address
    assert str(address) == shown
    assert parse_metrics_address(shown) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "65536",
        "example.org:9817",
        "1.2.3:9817",
        "::1:9817",
        "[127.0.0.1]:x",
        "[::g]:1",
        "٣",
        "-1",
    ],
)
def test_wrong_metrics_addresses(text):
    with pytest.raises(ValueError, match=r"^off, unix:PATH, PORT, ADDRESS:PORT or"):
        parse_metrics_address(text)


@pytest.mark.parametrize(
    ("text", "interfaces"),
    [
        ("eth0", ("eth0",)),
        ("eth0,wlan0", ("eth0", "wlan0")),
        (" eth0 , 192.0.2.1  fe80::1 eth0 ", ("eth0", "192.0.2.1", "fe80::1")),
        ("br-0123456789ab", ("br-0123456789ab",)),
    ],
)
def test_interfaces(text: str, interfaces: tuple[str, ...]) -> None:
    assert parse_interfaces(text) == interfaces


@pytest.mark.parametrize("text", ["", " , ", "a/b", "averyveryverylongname", "eth0:1", "fe80::1::2", ".."])
def test_wrong_interfaces(text: str) -> None:
    with pytest.raises(ValueError, match="name"):
        parse_interfaces(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [("build", "build"), ("build.local", "build"), ("B-1.local.", "B-1"), ("x" * 63, "x" * 63)],
)
def test_host_names(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("text", ["", ".local", "a.b", "build.example.org", "-a", "a-", "a b", "é", "x" * 64])
def test_wrong_host_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a host name of up to 63 letters, digits and dashes"):
        parse_host(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tls://farm.example.org:8786", FarmAddress(True, "farm.example.org", 8786)),
        ("tls://10.0.0.7:0", FarmAddress(True, "10.0.0.7", 0)),
        ("tls://[2001:db8::7]:65535", FarmAddress(True, "2001:db8::7", 65535)),
        ("tcp://127.0.0.2:1", FarmAddress(False, "127.0.0.2", 1)),
        ("tcp://[::1]:1", FarmAddress(False, "::1", 1)),
        ("tcp://localhost:1", FarmAddress(False, "localhost", 1)),
    ],
)
def test_farm_addresses(text, address):
    assert parse_farm_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "farm:1",
        "tls://farm",
        "tls://farm:65536",
        "tls://2001:db8::7:1",
        "tls://[farm]:1",
        "tls://a b:1",
        "TLS://a:1",
        "tls://farm:1/",
        "tls://user@farm:1",
        "tls://farm:1\n",
        "tcp://farm:1",
        "tcp://0.0.0.0:1",
        "tcp://[::]:1",
    ],
)
def test_farm_addresses_that_are_none_say_what_one_is(text):
    with pytest.raises(ValueError, match=r"^tls://HOST:PORT, "):
        parse_farm_address(text)
