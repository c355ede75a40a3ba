"""Decides whether a certificate is a server's: by its fingerprint, or by a file or a database that has it.

Servers sign their certificates themselves, so each is trusted or not by itself, as in the real client: what
its names say does not count. A handshake has shown before that the server has the key.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from stapsrv.client.address import Address
from stapsrv.client.errors import ClientError, ServerNotTrusted
from stapsrv.client.nss import is_database, read_trusted
from stapsrv.errors import ProtocolError
from stapsrv.text import printable

_MAX_PEM_BYTES = 4 * 1024 * 1024
_PREFIX = "SHA256:"
_HEX = re.compile(r"(?:[0-9a-f]{2}:?){31}[0-9a-f]{2}", re.IGNORECASE)


class Trust(Protocol):
    """Decides whether a certificate is that of the server at an address."""

    def check(self, address: Address, certificate: x509.Certificate) -> None:
        """Return if it is.

        Raises:
            ServerNotTrusted: it is not.
            ClientError: what decides cannot be read.
        """


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate as ``SHA256:`` and hex pairs, as ``openssl x509`` shows them."""
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
    return f"{_PREFIX}{digest.hex(':').upper()}"


def parse_fingerprint(text: str) -> str:
    """Read a fingerprint, with or without ``SHA256:`` and colons, in the form of :func:`fingerprint_of`."""
    digits = text[len(_PREFIX) :] if text.upper().startswith(_PREFIX) else text
    if not _HEX.fullmatch(digits):
        raise ClientError(
            f"{printable(text)!r} is no SHA-256 fingerprint",
            remedy="write SHA256: and 32 hex pairs, as `stap-server cert show` says them",
        )
    return f"{_PREFIX}{bytes.fromhex(digits.replace(':', '')).hex(':').upper()}"


def load_certificate(der: bytes, where: str) -> x509.Certificate:
    """Read a certificate that a server shows; one that cannot be read is a ProtocolError."""
    try:
        with warnings.catch_warnings():
            # About oddities that the user cannot do anything about.
            warnings.simplefilter("ignore")
            return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as exc:
        raise ProtocolError(f"{where}: the certificate cannot be read ({printable(str(exc))})") from exc


@attrs.frozen
class Certificates:
    """Trusts the servers of these certificates, by their fingerprints; ``source`` says whose they are."""

    fingerprints: frozenset[str]
    source: str
    # Serial numbers, by which servers are advertised; empty where they are not known.
    serials: frozenset[int] = frozenset()

    @classmethod
    def by_fingerprint(cls, *fingerprints: str) -> Certificates:
        """Trust the certificates with these fingerprints; else a ClientError."""
        return cls(frozenset(map(parse_fingerprint, fingerprints)), "--fingerprint")

    @classmethod
    def read(cls, path: Path) -> Certificates:
        """Trust the certificates in a PEM file, or those that an NSS database directory trusts as peers.

        Raises:
            ClientError: it cannot be read, or holds none.
        """
        try:
            certificates = read_trusted(path) if is_database(path) else _read_pem(path)
        except OSError as exc:
            raise ClientError(f"cannot be read ({exc.strerror or exc})", where=str(path)) from exc
        except ValueError as exc:
            raise ClientError(f"holds a certificate that cannot be read ({exc})", where=str(path)) from exc
        if not certificates:
            raise ClientError(
                "no server's certificate is trusted there",
                where=str(path),
                remedy="add one with certutil -t P,P,P",
            )
        serials = frozenset(certificate.serial_number for certificate in certificates)
        return cls(frozenset(map(fingerprint_of, certificates)), str(path), serials)

    def check(self, address: Address, certificate: x509.Certificate) -> None:
        """See :class:`Trust`."""
        shown = fingerprint_of(certificate)
        if shown not in self.fingerprints:
            expected = next(iter(self.fingerprints)) if len(self.fingerprints) == 1 else "none of those"
            raise ServerNotTrusted(
                f"{address} shows the certificate {shown}, not trusted: {self.source} says {expected}",
                remedy="ask its operator which one is right",
            )


def _read_pem(path: Path) -> Iterable[x509.Certificate]:
    with path.open("rb") as file:
        data = file.read(_MAX_PEM_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if data.startswith(b"\x30"):
            # stap.cert, beside a server's database, is DER.
            return [x509.load_der_x509_certificate(data)]
        return x509.load_pem_x509_certificates(data)
