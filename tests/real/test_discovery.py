"""What the real client, and its avahi, find of a supervisor with a server for each of two kernel releases."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import attrs
import pytest
from kit.lan import CABLE, NAME, SERVER_ADDRESS, Lan, give_to_user, wait_seen
from kit.moks import make_mok
from kit.network import Program, Seen
from kit.real import Stap, vermagic

pytestmark = [
    pytest.mark.root,
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


@attrs.frozen
class Service:
    """The supervisor, and what there is to ask about it.

    Attributes:
        lan: where it runs.
        program: its process.
        seen: its two services, each by the release that it serves, as first received over IPv4.
    """

    lan: Lan
    program: Program
    seen: dict[str, Seen]


@pytest.fixture(scope="module")
def service(lan: Lan, users_warm_stap: Stap) -> Iterator[Service]:
    """Host the servers; when they stop, their services are gone."""
    if len(lan.installation.releases) < 2:
        pytest.skip("two kernels' headers are needed")
    warm, ours = (directory / "cache" for directory in (users_warm_stap.directory, lan.systemtap))
    subprocess.run(["cp", "-aT", warm, ours], check=True)
    # The first to be announced is not the one that has compiled before, which the client is to find.
    releases = lan.installation.releases[1::-1]
    place = lan.home / "service"
    (place / "conf.d").mkdir(parents=True)
    for number, release in enumerate(releases):
        text = f"RELEASE+={release}\nRUNTIME={lan.installation.runtime}\n"
        (place / "conf.d" / f"{number}.conf").write_text(text)
    config = place / "global.conf"
    config.write_text(f"CONFIG_PATH={place}/conf.d\nSTAT_PATH={place}/stat\nLOG_FILE={place}/log\n")
    give_to_user(place)
    browser = lan.client.browse()
    with lan.hosting("-c", config) as program:
        seen = browser.wait(lambda seen: len(seen) == 4)
        assert {each.name for each in seen} == {NAME, f"{NAME} #2"}
        over_ipv4 = {each.sysinfo.partition(" ")[0]: each for each in seen if each.protocol == "IPv4"}
        assert set(over_ipv4) == set(releases)
        yield Service(lan, program, over_ipv4)
        # The one above ended with the avahi that it asked.
        browser = lan.client.browse()
        browser.wait(lambda seen: len(seen) == 4)
    browser.wait(lambda seen: not seen)


def test_client_lists_what_is_online(service):
    listed = service.lan.stap("--list-servers=online")
    for release, seen in service.seen.items():
        assert (
            f' host=build.local address={SERVER_ADDRESS} port={seen.port} sysinfo="{release} x86_64"'
            in listed
        )


def test_client_uses_the_server_for_its_release(service):
    release = service.lan.installation.release
    port = service.seen[release].port
    listed = service.lan.stap("-r", release, "--list-servers=online,trusted,compatible").splitlines()[-2:]
    for line, address in zip(sorted(listed), (SERVER_ADDRESS, "fe80:"), strict=True):
        assert line.startswith(f" host=build.local address={address}")
        assert f' port={port} sysinfo="{release} x86_64" version=' in line

    words = ("-v", "-p4", "-m", "found", "-r", release, "-e", "probe begin { exit() }")
    said = service.lan.stap("--use-server", *words)
    assert "WARNING: The domain name" not in said
    assert f"port={port} " in said
    assert vermagic(service.lan.home / "found.ko") == release


@pytest.mark.parametrize("with_port", [False, True], ids=["serial", "serial and port"])
def test_client_finds_a_server_by_serial_number(service, with_port):
    """Both servers have the certificate; the port tells them apart."""
    (serial,) = {seen.strings("certinfo")[0] for seen in service.seen.values()}
    newest, other = (service.seen[release] for release in service.lan.installation.releases[:2])
    wanted = f"{serial}:{other.port}" if with_port else serial
    listed = service.lan.stap(f"--use-server={wanted}", "--list-servers=specified")
    assert f" address={SERVER_ADDRESS} port={other.port} " in listed
    assert (f" port={newest.port} " in listed) is not with_port
    release = other.sysinfo.partition(" ")[0]
    words = ("-p4", "-m", "numbered", "-r", release, "-e", "probe begin { exit() }")
    service.lan.stap(f"--use-server={wanted}", *words)
    assert vermagic(service.lan.home / "numbered.ko") == release


def test_browse_lists_what_the_client_finds(service):
    lan = service.lan
    known = {seen.name: seen for seen in lan.client.look() if seen.protocol == "IPv4"}
    found = json.loads(lan.stap_server("browse", "--json", "--timeout", "1.5", on=lan.client))
    assert [each["name"] for each in found] == sorted(known)
    for each in found:
        seen = known[each["name"]]
        ipv4, ipv6 = each.pop("addresses")
        assert ipv4 == SERVER_ADDRESS
        assert ipv6.startswith("fe80:")
        assert ipv6.endswith(f"%{CABLE}")
        assert each == {
            "name": seen.name,
            "host": "build.local",
            "port": seen.port,
            "release": seen.sysinfo.partition(" ")[0],
            "arch": "x86_64",
            "version": seen.strings("version")[0],
            "serial": seen.strings("certinfo")[0],
            "options": f"-R{lan.installation.runtime}",
            "moks": list(seen.strings("mok_info")),
            "trusted": True,
        }


def test_doctor_finds_the_servers_of_its_host(service):
    config = service.lan.home / "service" / "global.conf"
    words = ("doctor", "--json", "--no-compile", "-c", config)
    found = json.loads(service.lan.stap_server(*words, on=service.lan.server))["findings"]
    heard = [each for each in found if each["question"] == "announced (mDNS)"]
    assert {each["verdict"] for each in heard} == {"ok"}
    names = {each["answer"].partition(": ")[2] for each in heard}
    assert names == {seen.name for seen in service.seen.values()}


def test_changed_keys_are_announced(service):
    """Of the certificate, and a machine owner key: no client comes by, and nothing tells the servers."""
    lan = service.lan
    (before,) = {seen.strings("certinfo") for seen in service.seen.values()}
    serial = lan.stap_server("cert", "renew").split()[0]
    assert before != (serial,)
    fingerprint = make_mok(lan.moks).fingerprint
    give_to_user(lan.moks)
    wait_seen(
        lan,
        lambda seen: (
            {(each.strings("certinfo"), fingerprint in each.strings("mok_info")) for each in seen}
            == {((serial,), True)}
        ),
    )


def test_restarted_avahi_finds_the_servers_again(service):
    lan = service.lan
    assert lan.avahi.stop() == 0
    lan.start_avahi()
    lan.client.browse().wait(lambda seen: len(seen) == 4)
