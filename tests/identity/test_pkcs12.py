from __future__ import annotations

import subprocess
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from hypothesis import given, settings
from hypothesis import strategies as st

from stapsrv.identity.certificate import NICKNAME, Identity
from stapsrv.identity.memfd import memory_file
from stapsrv.identity.pkcs12 import private_keys

PASSWORD = b"of the bundle"


@pytest.fixture(scope="module", params=["NONE", "AES-256-CBC"])
def exported(made: Identity, request: pytest.FixtureRequest) -> bytes:
    """A bundle as pk12util writes it, in BER, its certificates in the clear or encrypted."""
    with memory_file() as bundle, memory_file(PASSWORD + b"\n") as password, memory_file(b"\n") as own:
        files = (bundle, password, own)
        command = ["pk12util", "-o", bundle.path, "-n", NICKNAME, "-d", f"sql:{made.directory}"]
        command += ["-C", request.param, "-k", own.path, "-w", password.path]
        subprocess.run(command, pass_fds=[file.descriptor for file in files], check=True, capture_output=True)
        return bundle.read()


def is_key_of(key: object, identity: Identity) -> bool:
    return isinstance(key, RSAPrivateKey) and key.public_key() == identity.certificate.public_key()


def test_key_of_pk12util_s_bundle_is_read(exported: bytes, made: Identity):
    assert exported[1] == 0x80, "no longer BER: is this module still needed?"
    (key,) = private_keys(exported, PASSWORD)
    assert is_key_of(key, made)


def test_bundle_in_der_is_read(made: Identity):
    bundle = serialize_key_and_certificates(
        b"name", made.key, made.certificate, None, BestAvailableEncryption(PASSWORD)
    )
    (key,) = private_keys(bundle, PASSWORD)
    assert is_key_of(key, made)


def test_wrong_password_is_a_value_error(exported: bytes):
    with pytest.raises(ValueError, match=r"(?i)key data|password|decrypt"):
        private_keys(exported, b"wrong")


def test_truncated_bundle_is_a_value_error(exported: bytes):
    for length in range(len(exported)):
        with pytest.raises(ValueError, match=r"cut short|not enough values|longer|does not"):
            private_keys(exported[:length], PASSWORD)


@settings(database=None)  # nothing to write: the suite may not own the checkout
@given(st.binary(max_size=200))
def test_anything_else_is_a_value_error(junk: bytes):
    with suppress(ValueError):
        assert private_keys(junk, PASSWORD) == []


def test_deep_nesting_is_refused():
    with pytest.raises(ValueError, match="too deeply"):
        private_keys(b"\x30\x80" * 5000, PASSWORD)
