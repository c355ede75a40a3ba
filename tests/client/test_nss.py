"""Databases of NSS, made by its own certutil."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from kit.compile_server import Identity

from stapsrv.client.errors import ClientError
from stapsrv.client.nss import is_database, read_trusted


def certutil(database, *arguments):
    subprocess.run(["certutil", "-d", f"sql:{database}", *map(str, arguments)], check=True, timeout=60)


@pytest.fixture(scope="module")
def database(tmp_path_factory, identity_of_server):
    """One that trusts a server as stap's client does, and knows another certificate without trust."""
    if shutil.which("certutil") is None:
        pytest.skip("needs certutil")
    place = tmp_path_factory.mktemp("nss")
    certutil(place, "-N", "--empty-password")
    certutil(place, "-A", "-n", "stap-server", "-t", "P,P,P", "-i", identity_of_server.pem)
    known = Identity.make(place / "known")
    certutil(place, "-A", "-n", "known", "-t", ",,", "-i", known.pem)
    distrusted = Identity.make(place / "distrusted")
    certutil(place, "-A", "-n", "distrusted", "-t", "p,p,p", "-i", distrusted.pem)
    return place


def test_only_trusted_peers_are_read(database, identity_of_server):
    assert is_database(database)
    assert read_trusted(database) == [identity_of_server.certificate]


def test_database_is_only_read(database):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in database.iterdir())
    read_trusted(database)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in database.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x", b"", "there is no cert9.db; name an NSS database or a PEM file"),
        ("cert8.db", b"", "cert8.db is of NSS's old format"),
        ("cert9.db", b"not a database" * 100, "is no usable NSS database"),
        ("cert9.db", b"", "is no usable NSS database"),
    ],
)
def test_what_is_no_database_is_said_on_one_line(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClientError, match=problem) as raised:
        read_trusted(tmp_path)
    assert "\n" not in str(raised.value)
