"""Servers that are found on the loopback interface, and which of them suit."""

from __future__ import annotations

import builtins
import secrets

import attrs
import pytest
from zeroconf import ServiceInfo, Zeroconf

from stapsrv.client.address import Address
from stapsrv.client.discovery import FoundServer, find_servers, suitable
from stapsrv.client.errors import ClientError

FOUND = FoundServer(
    name="a", addresses=(Address("192.0.2.1", 5001),), release="6.1", arch="x86_64", version="4.8", serial=7
)


def test_advertised_server_is_found():
    own = f"test-{secrets.token_hex(4)}"
    text = {"sysinfo": f"{own} x86_64", "version": "4.8", "certinfo": "00:cc:2b:11:d9", "optinfo": ""}
    info = ServiceInfo(
        "_stap._tcp.local.",
        f"{own}._stap._tcp.local.",
        port=5001,
        parsed_addresses=["127.0.0.1"],
        properties=text,
        server=f"{own}.local.",
    )
    host = Zeroconf(["127.0.0.1"])
    try:
        host.register_service(info)
        # A host that has just announced itself answers after a second, and a busy one later.
        for _ in range(5):
            found = [server for server in find_servers(interfaces=["127.0.0.1"]) if server.release == own]
            if found:
                break
    finally:
        host.close()
    expected = FoundServer(
        name=own,
        addresses=(Address("127.0.0.1", 5001),),
        release=own,
        arch="x86_64",
        version="4.8",
        serial=0xCC2B11D9,
    )
    assert found == [expected]


def test_server_suits_by_release_arch_and_trust():
    servers = [
        FOUND,
        attrs.evolve(FOUND, release="6.2"),
        attrs.evolve(FOUND, arch="i386"),
        attrs.evolve(FOUND, addresses=()),
        attrs.evolve(FOUND, serial=None),
    ]
    assert suitable(servers, release="6.1", arch="x86_64") == [FOUND, attrs.evolve(FOUND, serial=None)]
    assert suitable(servers, release="6.1", arch="x86_64", serials={7}) == [FOUND]


def test_missing_zeroconf_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **more):
        if name == "zeroconf":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ClientError, match=r"install it: pip install 'stapsrv-client\[discover\]'"):
        find_servers(0.1, interfaces=["127.0.0.1"])
