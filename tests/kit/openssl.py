"""Signatures, judged by openssl: a program that this project does not use itself."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from pathlib import Path

KERNEL_MARK = b"~Module signature appended~\n"


def verifies(*, certificate: bytes, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is one of ``data``'s SHA-256 by the key of a certificate in DER."""
    with tempfile.TemporaryDirectory() as place:
        _write(place, certificate=certificate, data=data, signature=signature)
        assert _succeeds(place, "openssl x509 -inform DER -in certificate -pubkey -noout -out key")
        return _succeeds(place, "openssl dgst -sha256 -verify key -signature signature data")


def verifies_for_kernel(*, certificate: bytes, module: bytes) -> bool:
    """Whether a module ends in a signature that a kernel takes which knows the certificate, in DER."""
    body, appended, rest = module.rpartition(KERNEL_MARK)
    if rest or not appended:
        return False
    # The kernel's struct module_signature: what it is, and how long the PKCS#7 message before it.
    *_kind, length = struct.unpack(">BBBBB3xI", body[-12:])
    with tempfile.TemporaryDirectory() as place:
        _write(place, certificate=certificate, data=body[: -12 - length], signature=body[-12 - length : -12])
        assert _succeeds(place, "openssl x509 -inform DER -in certificate -out certificate.pem")
        return _succeeds(
            place,
            "openssl cms -verify -binary -noverify -nointern -certfile certificate.pem"
            " -inform DER -in signature -content data -out /dev/null",
        )


def _write(place: str, **files: bytes) -> None:
    for name, data in files.items():
        Path(place, name).write_bytes(data)


def _succeeds(place: str, command: str) -> bool:
    return subprocess.run(command.split(), cwd=place, check=False, capture_output=True).returncode == 0
