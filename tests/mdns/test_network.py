"""Servers advertised on a real network, and the real client that finds them there."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
from kit.lan import CABLE, CLIENT_ADDRESS, SERVER_ADDRESS, Lan, give_to_user, wait_established
from kit.moks import make_mok
from kit.network import WAIT_S, Browser, Seen, join
from kit.real import vermagic

pytestmark = [
    pytest.mark.root,
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

NAME = "Systemtap Compile Server on build"


OTHER_ADDRESS = "10.99.0.9"
SECOND_CABLE = "cable1"


def names(seen: list[Seen]) -> set[str]:
    return {service.name for service in seen}


def over_ipv4(seen: list[Seen]) -> set[tuple[str, str, str]]:
    """Name, host and address of what was heard over IPv4."""
    return {(each.name, each.host, each.address) for each in seen if each.protocol == "IPv4"}


def wait_heard(lan: Lan, *choices: set[tuple[str, str, str]]) -> None:
    """Wait until the client's avahi has one of these: name, host and address of what is heard over IPv4."""
    heard = []
    deadline = time.monotonic() + WAIT_S
    while not heard or heard[-1] not in choices:
        assert time.monotonic() < deadline, heard
        # Takes a second: avahi-browse waits for more by itself.
        heard.append(over_ipv4(lan.client.look()))


def of_release(browser: Browser, lan: Lan, count: int) -> dict[str, Seen]:
    """Wait for so many services of the newest release, heard over IPv4; returns them by their names."""
    sysinfo = f"sysinfo={lan.installation.release} x86_64"

    def found(seen: list[Seen]) -> list[Seen]:
        return [each for each in seen if each.protocol == "IPv4" and sysinfo in each.text]

    return {each.name: each for each in found(browser.wait(lambda seen: len(found(seen)) == count))}


def configure(lan: Lan, **files: str) -> object:
    """Write a configuration with these servers, and return its global file."""
    place = lan.home / "service"
    (place / "conf.d").mkdir(parents=True)
    (place / "global.conf").write_text(
        f"CONFIG_PATH={place}/conf.d\nSTAT_PATH={place}/stat\nLOG_FILE={place}/log\n"
    )
    for name, text in files.items():
        (place / "conf.d" / f"{name}.conf").write_text(text)
    give_to_user(place)
    return place / "global.conf"


def test_client_takes_the_server_that_fits(lan):
    if len(lan.installation.releases) < 2:
        pytest.skip("two kernels' headers are needed")
    first, second = lan.installation.releases[:2]
    runtime = f"RUNTIME={lan.installation.runtime}\n"
    config = configure(lan, one=f"RELEASE+={first}\n{runtime}", two=f"RELEASE+={second}\n{runtime}")
    browser = lan.client.browse()
    with lan.hosting("-c", config):
        seen = browser.wait(lambda seen: len(seen) == 4)
        assert names(seen) == {NAME, f"{NAME} #2"}
        online = lan.stap("--list-servers=online")
        assert f'sysinfo="{first} x86_64"' in online
        assert f'sysinfo="{second} x86_64"' in online
        fitting = lan.stap("-r", second, "--list-servers=online,trusted,compatible").splitlines()[-2:]
        port = {service.port for service in seen if f"sysinfo={second} x86_64" in service.text}.pop()
        for line, address in zip(sorted(fitting), (SERVER_ADDRESS, "fe80:"), strict=True):
            assert line.startswith(f" host=build.local address={address}")
            assert f' port={port} sysinfo="{second} x86_64" version=' in line

        probe = "probe begin { exit() }"
        said = lan.stap("--use-server", "-v", "-p4", "-m", "found", "-r", second, "-e", probe)
        assert "WARNING: The domain name" not in said
        assert f"port={port} " in said
        assert vermagic(lan.home / "found.ko") == second
    browser.wait(lambda seen: not seen)


def test_stopped_server_is_gone_within_a_second(lan):
    browser = lan.client.browse()
    with lan.serving() as server:
        wait_established(server)
        browser.wait(lambda seen: len(seen) == 2)
        began = time.monotonic()
        server.stop()
        browser.wait(lambda seen: not seen)
        # A listener keeps for a second what it heard goodbye of (RFC 6762, 10.1).
        assert time.monotonic() - began < 1.5


def test_two_hosts_of_one_name(lan):
    with lan.serving() as first:
        wait_established(first)
        # Beside an avahi whose host has a name of its own, and keeps it.
        with lan.serving("--mdns-host", "build", on=lan.client) as second:
            assert wait_established(second) == [f"{NAME} #2"]
            wait_heard(
                lan,
                {
                    (NAME, "build.local", SERVER_ADDRESS),
                    (f"{NAME} #2", "build-2.local", CLIENT_ADDRESS),
                },
            )
            assert lan.client.run("avahi-resolve", "-4", "-n", "laptop.local").split()[-1] == CLIENT_ADDRESS


def test_two_servers_of_one_host_that_start_at_once(lan):
    """Each is a process of its own, and neither hears of the other before both have taken the same name."""
    with lan.serving() as first, lan.serving() as second:
        for server in (first, second):
            wait_established(server)
        wait_heard(lan, {(name, "build.local", SERVER_ADDRESS) for name in (NAME, f"{NAME} #2")})


def test_each_link_hears_its_own_addresses(lan):
    join((lan.server, SECOND_CABLE, "10.98.0.1/24"), (lan.client, SECOND_CABLE, "10.98.0.2/24"))
    try:
        with lan.serving() as server:
            wait_established(server)
            assert {
                (each.interface, each.address) for each in lan.client.look() if each.protocol == "IPv4"
            } == {
                (CABLE, SERVER_ADDRESS),
                (SECOND_CABLE, "10.98.0.1"),
            }
    finally:
        lan.server.ip("link", "delete", SECOND_CABLE)


def test_names_that_two_networks_have_become_one(lan):
    """Both hosts have all names until the cable is plugged in; then one of the two takes other names."""
    lan.server.ip("link", "set", CABLE, "down")
    try:
        with lan.serving() as first, lan.serving("--mdns-host", "build", on=lan.client) as second:
            assert wait_established(first) == wait_established(second) == [NAME]
            lan.server.ip("link", "set", CABLE, "up")

            hosts, places = ("build.local", "build-2.local"), (SERVER_ADDRESS, CLIENT_ADDRESS)
            wait_heard(
                lan,
                *(
                    {(NAME, first_host, first_place), (f"{NAME} #2", second_host, second_place)}
                    for first_host, second_host in (hosts, hosts[::-1])
                    for first_place, second_place in (places, places[::-1])
                ),
            )
            renamed = f"Avahi service name collision, renaming service '{NAME}' to '{NAME} #2'"
            assert [bool(server.find_line(renamed)) for server in (first, second)].count(True) == 1
    finally:
        lan.server.ip("link", "set", CABLE, "up")


def test_network_that_goes_comes_and_changes(lan):
    """The server is up before there is any network, and follows it."""
    for interface in (CABLE, "lo"):
        lan.server.ip("link", "set", interface, "down")
    try:
        with lan.serving() as server:
            server.wait_line("cannot be advertised: no network interface is up and has an address; ")
            lan.server.ip("link", "set", CABLE, "up")
            wait_established(server)
            wait_heard(lan, {(NAME, "build.local", SERVER_ADDRESS)})

            lan.server.ip("address", "delete", f"{SERVER_ADDRESS}/24", "dev", CABLE)
            lan.server.ip("address", "add", f"{OTHER_ADDRESS}/24", "dev", CABLE)
            wait_heard(lan, {(NAME, "build.local", OTHER_ADDRESS)})
            assert f"address={OTHER_ADDRESS} " in lan.stap("--list-servers=online")
    finally:
        lan.server.ip("address", "flush", "dev", CABLE)
        lan.server.ip("address", "add", f"{SERVER_ADDRESS}/24", "dev", CABLE)
        lan.server.ip("link", "set", CABLE, "down")
        for interface in (CABLE, "lo"):
            lan.server.ip("link", "set", interface, "up")


def test_port_that_another_program_keeps_to_itself(lan):
    bind = "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 5353)); print('bound', flush=True)"
    holder = lan.server.start(sys.executable, "-c", f"import socket, time; {bind}; time.sleep(60)")
    holder.wait_line("bound")
    with lan.serving() as server:
        server.wait_line("cannot be advertised: multicast DNS is refused: Address already in use; ")
        holder.stop()
        assert wait_established(server) == [NAME]


def test_browse_tells_what_the_client_would_find(lan):
    with lan.serving() as server:
        wait_established(server)
        (seen,) = (each for each in lan.client.look() if each.protocol == "IPv4")
        serial = next(string for string in seen.text if string.startswith("certinfo=")).partition("=")[2]
        (found,) = json.loads(lan.browse("--json", "--timeout", "1.5").partition("\n\n")[0])
        addresses = found.pop("addresses")
        assert addresses[0] == SERVER_ADDRESS
        assert addresses[1].startswith("fe80:")
        assert addresses[1].endswith(f"%{CABLE}")
        assert found == {
            "name": NAME,
            "host": "build.local",
            "port": seen.port,
            "release": lan.installation.release,
            "arch": "x86_64",
            "version": "4.8",
            "serial": serial,
            "options": f"-R{lan.installation.runtime}",
            "moks": [],
            "trusted": True,
        }


def test_avahi_that_restarts_finds_the_server_again(lan):
    with lan.serving() as server:
        wait_established(server)
        assert lan.avahi.stop() == 0
        lan.start_avahi()
        lan.client.browse().wait(lambda seen: len(seen) == 2)


def test_same_words_as_the_original_beside_the_same_avahi(lan):
    """Of two servers of one release and one identity, one each, all that is said is the same."""
    moks = lan.systemtap / "ssl" / "server" / "moks"
    make_mok(moks)
    give_to_user(lan.systemtap)
    options = ("-B", "V=1 W=2", "-D", "ONE=1", "-DTWO", "-I", lan.home)
    lan.server.start_avahi()
    browser = lan.client.browse()
    with lan.serving_original(*options):
        (original,) = of_release(browser, lan, 1).values()
        with lan.serving(*options) as server:
            (name,) = wait_established(server)
            assert name != original.name
            ours = of_release(browser, lan, 2)[name]
            assert (ours.text, ours.host) == (original.text, original.host)
            assert [string.partition("=")[0] for string in ours.text] == [
                "certinfo",
                "mok_info",
                "optinfo",
                "sysinfo",
                "version",
            ]

            make_mok(moks)
            give_to_user(moks)
            server.wait_line(f"Avahi service '{ours.name}' is updated")
            again = {service.text for service in lan.client.look() if service.name == ours.name}
            assert [len([string for string in text if string.startswith("mok_info=")]) for text in again] == [
                2
            ]
