"""Servers pinned to their certificates, as ssh does."""

from __future__ import annotations

import threading

import pytest
from kit.compile_server import Identity

from stapsrv.client.address import Address
from stapsrv.client.errors import ClientError, ServerNotTrusted, UnknownServer
from stapsrv.client.known_servers import KnownServers, default_path

ADDRESS = Address("build", 5001)


@pytest.fixture
def known(tmp_path) -> KnownServers:
    return KnownServers(tmp_path / "config/stapsrv/known_servers")


def test_pinned_server_is_trusted_and_its_file_is_the_users_alone(known, identity_of_server):
    with pytest.raises(UnknownServer) as raised:
        known.check(ADDRESS, identity_of_server.certificate)
    known.pin(ADDRESS, raised.value.fingerprint)
    known.check(ADDRESS, identity_of_server.certificate)
    assert known.path.read_text() == f"build:5001 {identity_of_server.fingerprint}\n"
    assert known.path.stat().st_mode & 0o777 == 0o600
    assert known.path.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(UnknownServer):
        known.check(Address("build", 5002), identity_of_server.certificate)


def test_changed_certificate_is_refused_with_both_fingerprints_and_the_line(
    known, identity_of_server, tmp_path
):
    other = Identity.make(tmp_path / "other")
    known.path.parent.mkdir(parents=True)
    known.path.write_text(f"# mine\nelse:1 {other.fingerprint}\nbuild:5001 {other.fingerprint}\n")
    with pytest.raises(ServerNotTrusted, match="THE CERTIFICATE OF build:5001 HAS CHANGED") as raised:
        known.check(ADDRESS, identity_of_server.certificate)
    for part in (
        identity_of_server.fingerprint,
        f"{known.path}:3 has {other.fingerprint}",
        "remove line 3 of",
    ):
        assert part in str(raised.value)
    assert not isinstance(raised.value, UnknownServer)
    known.pin(ADDRESS, identity_of_server.fingerprint)
    lines = ["# mine", f"else:1 {other.fingerprint}", f"build:5001 {identity_of_server.fingerprint}"]
    assert known.path.read_text().splitlines() == lines


def test_lines_of_others_are_kept_byte_for_byte_and_none_is_lost(known, identity_of_server, monkeypatch):
    known.path.parent.mkdir(parents=True)
    known.path.write_bytes(b"# gr\xfc\xdfe\n")
    known.pin(ADDRESS, identity_of_server.fingerprint)
    before = known.path.read_bytes()
    assert before == b"# gr\xfc\xdfe\n" + f"build:5001 {identity_of_server.fingerprint}\n".encode()
    monkeypatch.setattr("stapsrv.client.known_servers._MAX_BYTES", len(before) - 1)
    with pytest.raises(ClientError, match="remove old lines"):
        known.pin(Address("build", 2), identity_of_server.fingerprint)
    assert known.path.read_bytes() == before


def test_line_that_cannot_be_read_is_named(known, identity_of_server):
    known.path.parent.mkdir(parents=True)
    known.path.write_text("build:5001\n")
    with pytest.raises(ClientError, match=r"known_servers:1: .*; mend or remove that line"):
        known.check(ADDRESS, identity_of_server.certificate)


def test_pins_at_the_same_time_are_all_kept(known, identity_of_server):
    addresses = [Address("build", port) for port in range(1, 21)]
    threads = [
        threading.Thread(target=known.pin, args=(each, identity_of_server.fingerprint)) for each in addresses
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(known.path.read_text().splitlines()) == len(addresses)
    assert sorted(path.name for path in known.path.parent.iterdir()) == [
        ".known_servers.lock",
        "known_servers",
    ]


def test_link_stays_one(known, identity_of_server, tmp_path):
    known.path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").touch()
    known.path.symlink_to(tmp_path / "elsewhere")
    known.pin(ADDRESS, identity_of_server.fingerprint)
    assert known.path.is_symlink()
    assert (tmp_path / "elsewhere").read_text()


def test_file_that_cannot_be_written_is_said_on_one_line(known, identity_of_server, tmp_path):
    (tmp_path / "config").touch()
    with pytest.raises(ClientError, match=r"known_servers: cannot be used \(") as raised:
        known.pin(ADDRESS, identity_of_server.fingerprint)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"XDG_CONFIG_HOME": "/c", "HOME": "/h"}, "/c/stapsrv/known_servers"),
        ({"XDG_CONFIG_HOME": "c", "HOME": "/h"}, "/h/.config/stapsrv/known_servers"),
        ({"HOME": "/h"}, "/h/.config/stapsrv/known_servers"),
    ],
)
def test_default_path_follows_the_base_directories(environ, path):
    assert str(default_path(environ)) == path
