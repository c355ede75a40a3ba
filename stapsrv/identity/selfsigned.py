"""Makes a server's self-signed certificate, like SystemTap's own server does (PROTOCOL, Certificates)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

# Private, but the only way: NSS compares subjects to the byte, and those of SystemTap's own server are
# PrintableString where cryptography would write UTF8String.
from cryptography.x509.name import _ASN1Type

_KEY_BITS = 3072
_LIFETIME = timedelta(days=365)
_DIGEST = hashes.SHA256()
# Clients know a server by its serial number (certinfo), and `--use-server=SERIAL` takes one of exactly five
# octets in DER, where the first bit is the sign. At random: also the certificates of many servers, and of
# their renewals, which all have the same issuer, differ (two in 2**39; NSS would refuse the second).
_LEAST_SERIAL, _END_OF_SERIALS = 2**31, 2**39
_SUBJECT = x509.Name(
    [
        x509.NameAttribute(oid, value, _type=_ASN1Type.PrintableString)
        for oid, value in (
            (x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "Systemtap"),
            (x509.NameOID.COMMON_NAME, "Systemtap Compile Server"),
        )
    ]
)
_NETSCAPE_CERT_TYPE = x509.UnrecognizedExtension(
    x509.ObjectIdentifier("2.16.840.1.113730.1.1"),
    bytes.fromhex("03020051"),  # a BIT STRING: SSL server, object signing, object signing CA
)


def make_certificate(
    host: str, now: datetime, *, extra_names: Sequence[str] = ()
) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    """Make a key and its self-signed certificate, valid for a year from ``now``; blocks for 0.3 s and more.

    It is for the host's short name, that with ``.local``, and further DNS names.

    Raises:
        ValueError: a name is not a DNS name.
    """
    names = [host, f"{host}.local", *extra_names]
    alternative_name = x509.SubjectAlternativeName([x509.DNSName(name) for name in dict.fromkeys(names)])
    extensions = [(alternative_name, False), (_NETSCAPE_CERT_TYPE, True)]
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    serial = _LEAST_SERIAL + secrets.randbelow(_END_OF_SERIALS - _LEAST_SERIAL)
    return self_signed(key, _SUBJECT, extensions, serial=serial, begin=now, lifetime=_LIFETIME), key


def self_signed(
    key: CertificateIssuerPrivateKeyTypes,
    subject: x509.Name,
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
    *,
    serial: int,
    begin: datetime,
    lifetime: timedelta,
    digest: hashes.SHA256 | None = _DIGEST,
) -> x509.Certificate:
    """Return a key's self-signed certificate with these extensions, each with whether it is critical.

    ``digest`` is what its kind of key signs; None for one that hashes by itself.
    """
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), serial, begin, begin + lifetime)
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return builder.sign(key, digest)


def key_in_pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    """Return a private key in PEM (PKCS#8), without a password."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def extra_names_of(certificate: x509.Certificate, host: str) -> list[str]:
    """Return the DNS names in a certificate that are not the host's own; a renewal keeps them."""
    own = {host, f"{host}.local"}
    return [name for name in dns_names(certificate) if name not in own]


def dns_names(certificate: x509.Certificate) -> list[str]:
    """Return the DNS names that a certificate is for."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)


def host_name() -> str:
    """Return this host's short name, as a certificate can carry it."""
    name = os.uname().nodename.partition(".")[0]
    return name if name and name.isascii() else "localhost"
