"""Servers advertised on a network that changes, beside other hosts, other servers, avahi and the original."""

from __future__ import annotations

import os
import sys

import pytest
from kit.lan import (
    CABLE,
    CLIENT_ADDRESS,
    NAME,
    SERVER_ADDRESS,
    Lan,
    give_to_user,
    wait_established,
    wait_seen,
)
from kit.moks import make_mok
from kit.network import Browser, Seen, join

pytestmark = [
    pytest.mark.root,
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

OTHER_ADDRESS = "10.99.0.9"
SECOND_CABLE, SECOND_ADDRESS = "cable1", "10.98.0.1"

Place = tuple[str, str, str]
"""Name, host and address of a service."""


def places(seen: list[Seen]) -> set[Place]:
    """Return the services received over IPv4."""
    return {(each.name, each.host, each.address) for each in seen if each.protocol == "IPv4"}


def are_apart(found: set[Place]) -> bool:
    """Whether there is one service of each host, and the two share neither name nor host name.

    Which host keeps a name is a matter of chance; now and then neither does.
    """
    names, hosts, addresses = (set(column) for column in zip(*found, strict=True)) if found else ((), (), ())
    return len(found) == len(names) == len(hosts) == 2 and addresses == {SERVER_ADDRESS, CLIENT_ADDRESS}


def are_two_and_one(found: set[Place]) -> bool:
    """Whether there are two services of the server's host and one of the client's, all different."""
    of_server = {host for _, host, address in found if address == SERVER_ADDRESS}
    of_client = {host for _, host, address in found if address == CLIENT_ADDRESS}
    names = {name for name, _, _ in found}
    return len(found) == len(names) == 3 and len(of_server) == len(of_client) == 1 and of_server != of_client


def wait_places(lan: Lan, *choices: set[Place]) -> None:
    """Wait until the client's avahi has one of these."""
    wait_seen(lan, lambda seen: places(seen) in choices)


def of_release(browser: Browser, lan: Lan, count: int) -> dict[str, Seen]:
    """Wait for so many services of the newest release, received over IPv4; returns them by their names."""
    sysinfo = f"{lan.installation.release} x86_64"

    def found(seen: list[Seen]) -> list[Seen]:
        return [each for each in seen if each.protocol == "IPv4" and each.sysinfo == sysinfo]

    return {each.name: each for each in found(browser.wait(lambda seen: len(found(seen)) == count))}


def test_servers_and_hosts_of_one_name_get_different_ones(lan):
    """Two servers of one host begin at once; one of a second host comes after them, one of the first goes."""
    with lan.serving() as first, lan.serving() as second:
        for server in (first, second):
            wait_established(server)
        # Each may have taken the name before it received the other's.
        two = places(wait_seen(lan, lambda seen: len({name for name, _, _ in places(seen)}) == 2))
        assert {place[1:] for place in two} == {("build.local", SERVER_ADDRESS)}
        # Beside an avahi whose host has a name of its own, and keeps it.
        with lan.serving("--mdns-host", "build", on=lan.client) as third:
            (name,) = wait_established(third)
            assert name.startswith(NAME)
            wait_seen(lan, lambda seen: are_two_and_one(places(seen)))
            assert lan.client.run("avahi-resolve", "-4", "-n", "laptop.local").split()[-1] == CLIENT_ADDRESS

            browser = lan.client.browse()
            ports = {each.port for each in browser.wait(lambda seen: len(seen) >= 6)}
            second.stop()
            # By its goodbye, a second after which a listener forgets it: else it would stay for an hour
            # (RFC 6762, 10 and 10.1).
            left = browser.wait(lambda seen: len({each.port for each in seen}) == 2)
            listed = lan.stap("--list-servers=online")
            still = {each.port for each in left}
            assert {port for port in ports if f"port={port} " in listed} == still
            assert len(ports - still) == 1


def test_two_networks_that_are_joined_resolve_their_conflicts(lan):
    """Both hosts have all names until the cable is plugged in; then one of the two takes other names."""
    lan.server.ip("link", "set", CABLE, "down")
    try:
        with lan.serving() as first, lan.serving("--mdns-host", "build", on=lan.client) as second:
            assert wait_established(first) == wait_established(second) == [NAME]
            lan.server.ip("link", "set", CABLE, "up")
            wait_seen(lan, lambda seen: are_apart(places(seen)))
            renamed = rf"Avahi service name collision, renaming service '{NAME}' to '{NAME} #\d'"
            assert any(server.find_line(renamed) for server in (first, second))
    finally:
        lan.server.ip("link", "set", CABLE, "up")


def test_servers_are_advertised_when_the_network_comes_and_changes(lan):
    """The server is up before there is a network, and before it may use it."""
    bind = "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 5353)); print('bound', flush=True)"
    holder = lan.server.start(sys.executable, "-c", f"import signal, socket; {bind}; signal.pause()")
    holder.wait_line("bound")
    for interface in (CABLE, "lo"):
        lan.server.ip("link", "set", interface, "down")
    try:
        with lan.serving() as server:
            server.wait_line("cannot be advertised: no network interface is up and has an address; ")
            lan.server.ip("link", "set", CABLE, "up")
            server.wait_line("cannot be advertised: multicast DNS is refused: Address already in use; ")
            holder.stop()
            assert wait_established(server) == [NAME]
            wait_places(lan, {(NAME, "build.local", SERVER_ADDRESS)})

            # Each link hears its own addresses.
            lan.server.ip("address", "delete", f"{SERVER_ADDRESS}/24", "dev", CABLE)
            lan.server.ip("address", "add", f"{OTHER_ADDRESS}/24", "dev", CABLE)
            join(
                (lan.server, SECOND_CABLE, f"{SECOND_ADDRESS}/24"),
                (lan.client, SECOND_CABLE, "10.98.0.2/24"),
            )
            wanted = {(CABLE, OTHER_ADDRESS), (SECOND_CABLE, SECOND_ADDRESS)}
            wait_seen(
                lan,
                lambda seen: (
                    {(each.interface, each.address) for each in seen if each.protocol == "IPv4"} == wanted
                ),
            )
            assert f"address={OTHER_ADDRESS} " in lan.stap("--list-servers=online")
    finally:
        lan.server.run("sh", "-c", f"ip link delete {SECOND_CABLE} || true")
        lan.server.ip("address", "flush", "dev", CABLE)
        lan.server.ip("address", "add", f"{SERVER_ADDRESS}/24", "dev", CABLE)
        lan.server.ip("link", "set", CABLE, "down")
        for interface in (CABLE, "lo"):
            lan.server.ip("link", "set", interface, "up")


def test_records_equal_the_originals(lan):
    """Of two servers of one release and one identity, one each, the records are equal."""
    make_mok(lan.moks)
    give_to_user(lan.moks)
    options = ("-B", "V=1 W=2", "-D", "ONE=1", "-DTWO", "-I", lan.home)
    browser = lan.client.browse()
    with lan.serving(*options) as server:
        avahi = lan.server.start_avahi()
        try:
            (name,) = wait_established(server)
            with lan.serving_original(*options):
                services = of_release(browser, lan, 2)
                ours = services.pop(name)
                (original,) = services.values()
        finally:
            avahi.stop()
    assert (ours.text, ours.host) == (original.text, original.host)
    assert set(ours.keys) == {"certinfo", "mok_info", "optinfo", "sysinfo", "version"}
