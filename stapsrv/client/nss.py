"""Reads the servers that an NSS database trusts, with nothing of NSS: it is an SQLite file.

SystemTap's own client keeps the certificates of its servers so, in ``~/.systemtap/ssl/client``, with the
trust ``P,P,P``. Only what is public is read. Source: PKCS #11, the attributes of certificates, and NSS's own
of trust.
"""

from __future__ import annotations

import hashlib
import sqlite3
import warnings
from pathlib import Path

from cryptography import x509

from stapsrv.client.errors import ClientError

_FILE, _OBSOLETE = "cert9.db", "cert8.db"
# Of one database; a user trusts a dozen servers.
_MAX_OBJECTS = 10_000
_MAX_CERTIFICATE_BYTES = 1024 * 1024

# Columns are named after attributes, in hex: CKA_CLASS, CKA_VALUE, and NSS's CKA_CERT_SHA1_HASH and
# CKA_TRUST_SERVER_AUTH. Numbers are four bytes, big-endian.
_CERTIFICATES = "SELECT a11 FROM nssPublic WHERE a0 = x'00000001' AND length(a11) <= ? LIMIT ?"
_TRUSTED = "SELECT ace5363b4 FROM nssPublic WHERE a0 = x'ce534353' AND ace536358 = x'ce534351' LIMIT ?"


def is_database(path: Path) -> bool:
    """Whether a path is that of a database's directory, as NSS's programs are given it with ``-d``."""
    return path.is_dir()


def read_trusted(directory: Path) -> list[x509.Certificate]:
    """Return the certificates that a database trusts as those of TLS peers (flag ``P``).

    Raises:
        ClientError: there is no database, it is of the old format, or it is damaged.
        ValueError: a certificate in it cannot be read.
    """
    path = directory / _FILE
    if not path.exists():
        if (directory / _OBSOLETE).exists():
            raise ClientError(
                f"{_OBSOLETE} is of NSS's old format", where=str(directory), remedy="name a PEM file"
            )
        raise ClientError(
            f"there is no {_FILE}", where=str(directory), remedy="name an NSS database or a PEM file"
        )
    try:
        # Read as it is: SQLite would otherwise make files beside it.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)
        try:
            values = [
                row[0] for row in connection.execute(_CERTIFICATES, (_MAX_CERTIFICATE_BYTES, _MAX_OBJECTS))
            ]
            trusted = {bytes(row[0]) for row in connection.execute(_TRUSTED, (_MAX_OBJECTS,)) if row[0]}
        finally:
            connection.close()
    except sqlite3.Error as exc:
        raise ClientError(f"is no usable NSS database ({exc})", where=str(path)) from exc
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            x509.load_der_x509_certificate(value)
            for value in map(bytes, values)
            if hashlib.sha1(value, usedforsecurity=False).digest() in trusted
        ]
