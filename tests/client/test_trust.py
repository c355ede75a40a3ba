"""Which certificates are trusted."""

from __future__ import annotations

import subprocess

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from kit.compile_server import Identity

from stapsrv.client.address import Address
from stapsrv.client.errors import ClientError, ServerNotTrusted
from stapsrv.client.trust import Certificates, fingerprint_of, load_certificate, parse_fingerprint
from stapsrv.errors import ProtocolError

ADDRESS = Address("build", 5001)


@pytest.fixture
def other(tmp_path) -> Identity:
    return Identity.make(tmp_path / "other")


def test_fingerprint_is_that_of_openssl(identity_of_server):
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", identity_of_server.pem]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert fingerprint_of(identity_of_server.certificate) == f"SHA256:{shown.partition('=')[2]}"


@pytest.mark.parametrize(
    "form", [str, str.lower, lambda text: text.replace(":", "")[6:], lambda text: text[7:]]
)
def test_fingerprint_is_read_in_each_form(identity_of_server, form):
    assert parse_fingerprint(form(identity_of_server.fingerprint)) == identity_of_server.fingerprint


@pytest.mark.parametrize("text", ["", "SHA256:", "SHA256:AA", "SHA256:" + "ZZ:" * 31 + "ZZ", "AA:" * 32])
def test_what_is_no_fingerprint_is_refused(text):
    with pytest.raises(ClientError, match="is no SHA-256 fingerprint"):
        parse_fingerprint(text)


def test_certificates_of_a_file_are_trusted_and_no_others(identity_of_server, other, tmp_path):
    (tmp_path / "both.pem").write_bytes(other.pem.read_bytes() + identity_of_server.pem.read_bytes())
    (tmp_path / "stap.cert").write_bytes(other.certificate.public_bytes(Encoding.DER))
    Certificates.read(tmp_path / "both.pem").check(ADDRESS, identity_of_server.certificate)
    trusted = Certificates.read(tmp_path / "stap.cert")
    trusted.check(ADDRESS, other.certificate)
    assert trusted.serials == {other.certificate.serial_number}
    with pytest.raises(ServerNotTrusted) as raised:
        trusted.check(ADDRESS, identity_of_server.certificate)
    for part in ("build:5001", identity_of_server.fingerprint, other.fingerprint, "stap.cert"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "content", [None, b"", b"\x30\x82", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_file_without_certificates_is_refused_on_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "x.pem").write_bytes(content)
    with pytest.raises(ClientError, match=r"x\.pem: ") as raised:
        Certificates.read(tmp_path / "x.pem")
    assert "\n" not in str(raised.value)


def test_certificate_that_cannot_be_read_is_the_servers_fault():
    with pytest.raises(ProtocolError, match="build:5001: the certificate cannot be read"):
        load_certificate(b"\x30\x00", "build:5001")
