"""Addresses of servers as people write them."""

from __future__ import annotations

import pytest

from stapsrv.client.address import Address
from stapsrv.client.errors import ClientError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("Build.example:5001", "build.example", 5001),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:5001", "fe80::1%eth0", 5001),
    ],
)
def test_address_is_read_and_written_again(text, host, port):
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text.lower()


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":5001", "host:0", "host:65536", "::1:5001", "a b:1", "h:1\n"]
)
def test_what_is_no_address_is_refused_on_one_line(text):
    with pytest.raises(ClientError, match=r"^'.*' is not the address of a server; write HOST:PORT") as raised:
        Address.parse(text)
    assert "\n" not in str(raised.value)
