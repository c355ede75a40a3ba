"""A server's word that stap ran in restricted mode: the signature that ``NAME.ko.sgn`` holds."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey


def sign_module(key: RSAPrivateKey, module: bytes) -> bytes:
    """Return the raw RSA signature of ``module``, PKCS#1 v1.5 over SHA-256; takes some milliseconds.

    Before it loads a module for a user who may not load any, ``staprun`` checks the signature against the
    certificates that its host's root has authorised.

    Args:
        key: that of the server's certificate.
        module: the contents of ``NAME.ko``, as they are loaded.

    Source: PROTOCOL, privilege and signing.
    """
    return key.sign(module, PKCS1v15(), hashes.SHA256())
