"""The farm's certificate authority, judged by openssl."""

from __future__ import annotations

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from stapsrv.errors import ConfigError, UsageError
from stapsrv.farm.ca import create_authority, issue

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def verified(authority: Path, certificate: Path, purpose: str) -> bool:
    words = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-purpose", purpose, "-CAfile", authority]
    return subprocess.run([*words, certificate], check=False, capture_output=True).returncode == 0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_members_are_servers_and_clients_of_their_own_farm_only(tmp_path):
    ours, theirs = (create_authority(tmp_path / name) for name in ("ours", "theirs"))
    member = issue(tmp_path / "ours", "worker-1")
    for purpose in ("sslserver", "sslclient"):
        assert verified(ours.certificate_file, member.certificate_file, purpose)
        assert not verified(theirs.certificate_file, member.certificate_file, purpose)
    # It cannot issue others.
    assert not verified(member.certificate_file, member.certificate_file, "any")
    assert ours.certificate.subject != theirs.certificate.subject


def test_files_are_the_owners(tmp_path):
    authority = create_authority(tmp_path / "farm")
    member = issue(tmp_path / "farm", "front")
    assert mode(tmp_path / "farm") == 0o700
    assert {path.name: mode(path) for path in (tmp_path / "farm").iterdir()} == dict.fromkeys(
        ("ca.pem", "ca.key", "front.pem", "front.key"), 0o600
    )
    assert (authority.certificate_file.name, member.key_file.name) == ("ca.pem", "front.key")


def test_certificates_say_what_they_are(tmp_path):
    authority = create_authority(tmp_path, now=NOW).certificate
    member = issue(
        tmp_path, "node", hosts=["10.0.0.7", "2001:db8::7", "node.example.org"], now=NOW
    ).certificate
    names = member.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node", "node.example.org"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "2001:db8::7"]
    assert member.subject.rfc4514_string() == "CN=node"
    for certificate, years, is_authority in ((authority, 10, True), (member, 2, False)):
        constraint = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraint.critical, constraint.value.ca) == (True, is_authority)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.key_cert_sign) == (True, is_authority)
        assert isinstance(certificate.public_key().curve, ec.SECP256R1)
        # Clocks differ.
        assert certificate.not_valid_before_utc == NOW - timedelta(hours=1)
        assert certificate.not_valid_after_utc == NOW + timedelta(days=365 * years)


def test_serial_numbers_differ_and_are_short_enough(tmp_path):
    create_authority(tmp_path)
    serials = {issue(tmp_path, f"n{number}").certificate.serial_number for number in range(5)}
    assert len(serials) == 5
    # RFC 5280, 4.1.2.2.
    assert all(0 < serial < 2**159 for serial in serials)


def test_member_does_not_outlive_its_authority(tmp_path):
    authority = create_authority(tmp_path, now=NOW).certificate
    late = authority.not_valid_after_utc - timedelta(days=3)
    assert issue(tmp_path, "late", now=late).certificate.not_valid_after_utc == authority.not_valid_after_utc
    with pytest.raises(ConfigError, match=r"ca\.pem: expired on 2036-03-01; make a new authority"):
        issue(tmp_path, "too-late", now=authority.not_valid_after_utc)
    assert not (tmp_path / "too-late.pem").exists()


def test_nothing_is_overwritten(tmp_path):
    create_authority(tmp_path)
    issue(tmp_path, "one")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for make in (lambda: create_authority(tmp_path), lambda: issue(tmp_path, "one")):
        with pytest.raises(ConfigError, match="is there already, and is not overwritten"):
            make()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_an_authority_there_is_nothing_to_issue(tmp_path):
    with pytest.raises(ConfigError, match=r"ca\.pem: there is none; make one: stap-farm ca init "):
        issue(tmp_path / "nowhere", "one")
    assert not (tmp_path / "nowhere").exists()
    create_authority(tmp_path)
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"ca\.key: is a private key, and others"):
        issue(tmp_path, "one")


def test_key_of_another_authority_is_refused(tmp_path):
    for name in ("a", "b"):
        create_authority(tmp_path / name)
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key: is not the key of the certificate beside it"):
        issue(tmp_path / "a", "one")


@pytest.mark.parametrize(
    "name", ["", "ca", "../up", "a/b", "-a", "a-", ".", "a..b", "x" * 64, "größe", "a\n"]
)
def test_name_that_cannot_be_one_is_refused(tmp_path, name):
    create_authority(tmp_path)
    with pytest.raises(UsageError, match="is no name for a certificate"):
        issue(tmp_path, name)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("host", ["", "a b", "*.example.org", "10.0.0.0/8", "[::1]"])
def test_host_that_is_none_is_refused(tmp_path, host):
    create_authority(tmp_path)
    with pytest.raises(UsageError, match=r"--host: .* is neither a host name nor an IP address"):
        issue(tmp_path, "one", hosts=[host])
    assert len(list(tmp_path.iterdir())) == 2
