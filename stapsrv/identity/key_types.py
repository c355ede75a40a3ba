"""The kinds of keys that modules and certificates are signed with, as the environment names them.

Names and variables are those of SystemTap 5.6 (stap(1), secure boot and safety and security); older releases
know RSA alone. ML-DSA (FIPS 204) needs a recent ``cryptography``.
"""

from __future__ import annotations

import binascii
import enum
import importlib
import re
from collections.abc import Mapping
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from stapsrv.errors import ConfigError, IdentityError

MOK_VARIABLE = "SYSTEMTAP_MOK_KEY_TYPE"
CERTIFICATE_VARIABLE = "SYSTEMTAP_SIGN_KEY_TYPE"

# A private key as OpenSSL writes it (RFC 9881, section 6: seed and expanded key), of which ``cryptography``
# reads the form with the seed alone. All lengths but the seed's take two octets.
_OPENSSL_KEY = re.compile(
    rb"0\x82..\x02\x01\x000\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x03(?P<kind>[\x11-\x13])"
    rb"\x04\x82..0\x82..\x04\x20(?P<seed>.{32})\x04\x82.*",
    re.DOTALL,
)
_BEGIN, _END = b"-----BEGIN PRIVATE KEY-----", b"-----END PRIVATE KEY-----"


class KeyType(enum.Enum):
    """A kind of key, by its name in the environment."""

    RSA = "rsa"
    ML_DSA_44 = "ml-dsa-44"
    ML_DSA_65 = "ml-dsa-65"
    ML_DSA_87 = "ml-dsa-87"

    @property
    def digest(self) -> hashes.SHA256 | None:
        """The hash by which such a key signs a certificate; None for a key that needs none."""
        return hashes.SHA256() if self is KeyType.RSA else None


# By the last octet of its identifier.
_ML_DSA = {0x11: KeyType.ML_DSA_44, 0x12: KeyType.ML_DSA_65, 0x13: KeyType.ML_DSA_87}


class _MlDsaKeys(Protocol):
    def generate(self) -> CertificateIssuerPrivateKeyTypes: ...
    def from_seed_bytes(self, data: bytes) -> CertificateIssuerPrivateKeyTypes: ...


def key_type_from(environ: Mapping[str, str], variable: str) -> KeyType:
    """Return the kind of new keys that a variable asks for, RSA where it is unset or empty.

    Raises:
        ConfigError: it names none.
    """
    wanted = environ.get(variable, "")
    normal = re.sub(r"^ml-?dsa-?(?=\d)", "ml-dsa-", wanted.lower())
    try:
        return KeyType(normal or KeyType.RSA.value)
    except ValueError as exc:
        names = ", ".join(kind.value for kind in KeyType)
        raise ConfigError(
            "is no kind of key", where=f"{variable}={wanted}", remedy=f"write one of {names}"
        ) from exc


def check_certificate_kind(environ: Mapping[str, str]) -> None:
    """Check the kind of key that servers' certificates are to have.

    Raises:
        ConfigError: it is none, or one of ML-DSA. SystemTap 5.6 makes such certificates, but its server can
            set up TLS with none (NSS 3.132: ``SEC_ERROR_INVALID_ARGS``), and no client before 5.6 knows them.
    """
    kind = key_type_from(environ, CERTIFICATE_VARIABLE)
    if kind is not KeyType.RSA:
        raise ConfigError(
            "clients before 5.6 cannot connect to a server with such a certificate",
            where=f"{CERTIFICATE_VARIABLE}={kind.value}",
            remedy="use rsa",
        )


def generate_key(kind: KeyType, *, rsa_bits: int) -> CertificateIssuerPrivateKeyTypes:
    """Make a key; one of RSA takes 0.2 s and more.

    Raises:
        IdentityError: the libraries of this installation make none of that kind.
    """
    if kind is KeyType.RSA:
        return rsa.generate_private_key(public_exponent=65537, key_size=rsa_bits)
    try:
        return _ml_dsa_class(kind).generate()
    except UnsupportedAlgorithm as exc:
        raise IdentityError(
            f"the libraries of this installation make no {kind.value} keys",
            remedy="install a newer cryptography for Python, or use rsa",
        ) from exc


def load_private_key(pem: bytes) -> PrivateKeyTypes:
    """Return the private key in ``pem``, which somebody trusted wrote: RSA keys are not validated.

    Raises:
        ValueError: it is none.
        TypeError: it is encrypted.
        UnsupportedAlgorithm: these libraries do not know its kind.
    """
    try:
        # To prove that its factors are primes takes 0.2 to 0.6 s.
        return load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    except ValueError:
        if (found := _openssl_key(pem)) is None:
            raise
    return _ml_dsa_class(_ML_DSA[found["kind"][0]]).from_seed_bytes(found["seed"])


def _openssl_key(pem: bytes) -> re.Match[bytes] | None:
    body = pem.partition(_BEGIN)[2].partition(_END)[0]
    try:
        return _OPENSSL_KEY.fullmatch(binascii.a2b_base64(body))
    except binascii.Error:
        return None


def _ml_dsa_class(kind: KeyType) -> _MlDsaKeys:
    # Not imported above: older releases of ``cryptography`` that suffice otherwise have none.
    try:
        module = importlib.import_module("cryptography.hazmat.primitives.asymmetric.mldsa")
    except ImportError as exc:
        raise UnsupportedAlgorithm(f"no {kind.value}") from exc
    keys: _MlDsaKeys = getattr(module, f"{kind.value.upper().replace('-', '')}PrivateKey")
    return keys
