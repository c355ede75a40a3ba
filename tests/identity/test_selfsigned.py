from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from stapsrv.identity.certificate import Identity, serial_pairs
from stapsrv.identity.selfsigned import host_name, make_certificate


def test_subject_equals_systemtap_s_to_the_byte(made: Identity):
    assert made.certificate.subject == made.certificate.issuer
    assert made.certificate.subject.rfc4514_string() == "CN=Systemtap Compile Server,OU=Systemtap"
    # OU first, both PrintableString (13): NSS allows one nickname only for equal bytes.
    assert made.certificate.subject.public_bytes().hex() == (
        "3037"
        "31123010060355040b1309" + b"Systemtap".hex() +
        "3121301f06035504031318" + b"Systemtap Compile Server".hex()
    )  # fmt: skip


def test_names_and_purpose():
    certificate, key = make_certificate("weaver", datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["weaver", "weaver.local"]
    purpose = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier("2.16.840.1.113730.1.1"))
    assert purpose.critical
    assert purpose.value.public_bytes() == bytes.fromhex("03020051")
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    assert key.key_size == 3072
    certificate.verify_directly_issued_by(certificate)
    assert certificate.not_valid_before_utc == datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert certificate.not_valid_after_utc == datetime(2027, 2, 3, 4, 5, 6, tzinfo=UTC)


def test_serial_numbers_differ(made: Identity, another: Identity):
    assert made.serial != another.serial


@pytest.mark.parametrize("drawn", ["least", "most"])
def test_serial_number_has_five_octets(monkeypatch: pytest.MonkeyPatch, drawn: str):
    """No other number is one to clients (PROTOCOL, Certificates)."""
    monkeypatch.setattr(secrets, "randbelow", lambda end: 0 if drawn == "least" else end - 1)
    certificate, _key = make_certificate("weaver", datetime(2026, 2, 3, tzinfo=UTC))
    assert serial_pairs(certificate) == {"least": "00:80:00:00:00", "most": "7f:ff:ff:ff:ff"}[drawn]


@pytest.mark.parametrize(
    ("node", "host"), [("vm", "vm"), ("vm.example.org", "vm"), ("", "localhost"), ("größe", "localhost")]
)
def test_host_name_is_short_and_ascii(monkeypatch: pytest.MonkeyPatch, node: str, host: str):
    class Uname:
        nodename = node

    monkeypatch.setattr(os, "uname", Uname)
    assert host_name() == host
