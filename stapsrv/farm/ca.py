"""A farm's own certificate authority (RFC 5280): the holder of one of its certificates belongs to the farm.

A directory holds ``ca.pem`` and ``ca.key``, and ``NAME.pem`` and ``NAME.key`` for each member, which needs
its own two and ``ca.pem``. There is no revocation: who must go is left behind by a new authority.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stapsrv.errors import ConfigError, UsageError
from stapsrv.farm.pem_files import (
    CERTIFICATE_SUFFIX,
    KEY_SUFFIX,
    create_pair,
    make_directory,
    read_certificate,
    read_key,
)

AUTHORITY = "ca"

_CURVE = ec.SECP256R1
_DIGEST = hashes.SHA256()
_AUTHORITY_LIFETIME = timedelta(days=3650)
_LIFETIME = timedelta(days=730)
# The clocks of a farm's hosts may differ by as much.
_BACKDATED = timedelta(hours=1)
# Of a host name (RFC 1123, 2.1).
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_HOST_CHARACTERS = 253
# A common name has at most 64 (RFC 5280, appendix A.1).
_NAME_CHARACTERS = 63


@attrs.frozen
class Member:
    """A certificate of the farm's authority and its files."""

    certificate: x509.Certificate
    certificate_file: Path
    key_file: Path


def create_authority(directory: Path, *, now: datetime | None = None) -> Member:
    """Make an authority in a directory, which is made if missing; it is valid for ten years.

    Raises:
        ConfigError: there is one already, or the directory cannot be used; nothing was changed.
    """
    make_directory(directory)
    key = ec.generate_private_key(_CURVE())
    # Two farms' authorities differ in their names, so that a certificate of the other says whose it is not.
    subject = _named(f"stapsrv farm {secrets.token_hex(4)}")
    builder = _builder(
        subject, subject, key.public_key(), _AUTHORITY_LIFETIME, now=now, issuer_key=key.public_key()
    )
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, _DIGEST)
    )
    return _stored(directory, AUTHORITY, certificate, key)


def issue(directory: Path, name: str, *, hosts: Sequence[str] = (), now: datetime | None = None) -> Member:
    """Issue a certificate for a scheduler, a worker or a front, with a new key; it is valid for two years.

    It is for ``name`` and further host names and IP addresses, and ends with the authority's at the latest.

    Raises:
        UsageError: a name cannot be one.
        ConfigError: there is one of that name already, no usable authority, or the directory cannot be used;
            nothing was changed.
    """
    if name == AUTHORITY or len(name) > _NAME_CHARACTERS or not _is_host_name(name):
        raise UsageError(
            f"{name!r} is no name for a certificate",
            remedy=f"use up to 63 letters, digits, inner dots and dashes, and not {AUTHORITY!r}",
        )
    names = x509.SubjectAlternativeName(list(_alternatives(dict.fromkeys((name, *hosts)))))
    authority, authority_key = _load_authority(directory, now or datetime.now(UTC))
    make_directory(directory)
    key = ec.generate_private_key(_CURVE())
    builder = _builder(
        _named(name),
        authority.subject,
        key.public_key(),
        _LIFETIME,
        now=now,
        issuer_key=authority_key.public_key(),
        until=authority.not_valid_after_utc,
    )
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        # A scheduler is a server, a worker both.
        .add_extension(purposes, critical=False)
        .add_extension(names, critical=False)
        .sign(authority_key, _DIGEST)
    )
    return _stored(directory, name, certificate, key)


def _load_authority(directory: Path, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_file = directory / f"{AUTHORITY}{CERTIFICATE_SUFFIX}"
    key_file = directory / f"{AUTHORITY}{KEY_SUFFIX}"
    for path in (certificate_file, key_file):
        if not path.exists():
            raise ConfigError(
                "there is none", where=str(path), remedy=f"make one: stap-farm ca init {directory}"
            )
    certificate, key = read_certificate(certificate_file), read_key(key_file)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(
            "is not the key of the certificate beside it",
            where=str(key_file),
            remedy="put the right one there",
        )
    if now >= certificate.not_valid_after_utc:
        raise ConfigError(
            f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}",
            where=str(certificate_file),
            remedy="make a new authority in another directory: stap-farm ca init",
        )
    return certificate, key


def _alternatives(names: Iterable[str]) -> Iterable[x509.GeneralName]:
    for name in names:
        try:
            yield x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            if not _is_host_name(name):
                raise UsageError(
                    f"{name!r} is neither a host name nor an IP address", where="--host"
                ) from None
            yield x509.DNSName(name)


def _is_host_name(text: str) -> bool:
    return len(text) <= _HOST_CHARACTERS and all(map(_LABEL.fullmatch, text.split(".")))


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    lifetime: timedelta,
    *,
    now: datetime | None,
    issuer_key: ec.EllipticCurvePublicKey,
    until: datetime | None = None,
) -> x509.CertificateBuilder:
    now = now or datetime.now(UTC)
    end = now + lifetime if until is None else min(now + lifetime, until)
    serial = x509.random_serial_number()
    return (
        x509.CertificateBuilder(issuer, subject, key, serial, now - _BACKDATED, end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _stored(
    directory: Path, name: str, certificate: x509.Certificate, key: CertificateIssuerPrivateKeyTypes
) -> Member:
    create_pair(directory, name, certificate, key)
    files = (directory / f"{name}{suffix}" for suffix in (CERTIFICATE_SUFFIX, KEY_SUFFIX))
    return Member(certificate, *files)
