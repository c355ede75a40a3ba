"""The kinds of keys: their names, and keys as this program, openssl and SystemTap's own server write them."""

from __future__ import annotations

import base64
import re
import sys

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa

from stapsrv.errors import ConfigError, IdentityError
from stapsrv.identity import key_types
from stapsrv.identity.key_types import (
    CERTIFICATE_VARIABLE,
    MOK_VARIABLE,
    KeyType,
    check_certificate_kind,
    generate_key,
    key_type_from,
    load_private_key,
)
from stapsrv.identity.selfsigned import key_in_pem

ML_DSA = [kind for kind in KeyType if kind is not KeyType.RSA]


@pytest.fixture
def old_library(monkeypatch) -> None:
    """Hide ML-DSA, which is new in ``cryptography``."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)


@pytest.fixture(params=ML_DSA, ids=lambda kind: kind.value)
def kind(request) -> KeyType:
    try:
        generate_key(request.param, rsa_bits=2048)
    except IdentityError as exc:
        pytest.skip(str(exc))
    return request.param


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, KeyType.RSA),
        ("", KeyType.RSA),
        ("rsa", KeyType.RSA),
        ("ml-dsa-44", KeyType.ML_DSA_44),
        ("mldsa65", KeyType.ML_DSA_65),
        ("ML-DSA-87", KeyType.ML_DSA_87),
    ],
)
def test_names_are_those_of_systemtap(value, kind):
    assert key_type_from({} if value is None else {MOK_VARIABLE: value}, MOK_VARIABLE) is kind


@pytest.mark.parametrize("value", ["rsa-4096", "ml-dsa", "ml-dsa-66", "mldsa-", " rsa"])
def test_other_names_are_refused(value):
    with pytest.raises(ConfigError) as caught:
        key_type_from({MOK_VARIABLE: value}, MOK_VARIABLE)
    assert str(caught.value) == (
        f"SYSTEMTAP_MOK_KEY_TYPE={value}: is no kind of key;"
        " write one of rsa, ml-dsa-44, ml-dsa-65, ml-dsa-87"
    )


def test_certificates_are_of_rsa_alone():
    check_certificate_kind({MOK_VARIABLE: "ml-dsa-65"})
    check_certificate_kind({CERTIFICATE_VARIABLE: "rsa"})
    with pytest.raises(ConfigError, match="TYPE=bogus: is no kind of key; write one"):
        check_certificate_kind({CERTIFICATE_VARIABLE: "bogus"})
    with pytest.raises(ConfigError) as caught:
        check_certificate_kind({CERTIFICATE_VARIABLE: "mldsa44"})
    assert str(caught.value) == (
        "SYSTEMTAP_SIGN_KEY_TYPE=ml-dsa-44: clients before 5.6 cannot connect to a server with such a"
        " certificate; use rsa"
    )


def test_rsa_key_has_the_bits_that_are_asked_for():
    key = generate_key(KeyType.RSA, rsa_bits=2048)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 2048
    assert load_private_key(key_in_pem(key)).public_key() == key.public_key()


def test_new_key_is_of_its_kind_and_is_read_again(kind):
    key = generate_key(kind, rsa_bits=2048)
    assert kind.value.replace("-", "") in type(key).__name__.lower()
    assert kind.digest is None
    assert load_private_key(key_in_pem(key)).public_key() == key.public_key()


def test_key_as_openssl_writes_it_is_read(kind):
    """openssl 3.5 and later write the expanded key behind the seed; its bytes do not matter here."""
    key = generate_key(kind, rsa_bits=2048)
    pem = openssl_form(key_in_pem(key))
    assert load_private_key(pem).public_key() == key.public_key()


@pytest.mark.parametrize("spoil", [b"A", b"A" * 80])
def test_spoilt_key_is_a_value_error(kind, spoil):
    pem = openssl_form(key_in_pem(generate_key(kind, rsa_bits=2048)))
    with pytest.raises(ValueError):  # noqa: PT011 - the library's own words
        load_private_key(pem.replace(b"-----\n", b"-----\n" + spoil, 1))


def test_text_without_a_key_is_a_value_error():
    with pytest.raises(ValueError):  # noqa: PT011 - the library's own words
        load_private_key(b"no key\n")


def test_library_without_ml_dsa_makes_no_such_key(old_library):
    with pytest.raises(IdentityError) as caught:
        generate_key(KeyType.ML_DSA_65, rsa_bits=2048)
    assert str(caught.value) == (
        "the libraries of this installation make no ml-dsa-65 keys;"
        " install a newer cryptography for Python, or use rsa"
    )


def test_library_without_ml_dsa_reads_no_such_key(kind, monkeypatch):
    pem = openssl_form(key_in_pem(generate_key(kind, rsa_bits=2048)))
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    with pytest.raises(UnsupportedAlgorithm):
        load_private_key(pem)


def openssl_form(pem: bytes) -> bytes:
    """Return an ML-DSA key with the seed alone in the form with both, whose expanded key is zeros here."""
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    identifier, seed = der[5:18], der[-32:]
    both = element(0x30, element(0x04, seed) + element(0x04, bytes(2560)))
    whole = element(0x30, b"\x02\x01\x00" + identifier + element(0x04, both))
    assert key_types._OPENSSL_KEY.fullmatch(whole) is not None
    body = re.sub(rb"(.{64})", rb"\1\n", base64.b64encode(whole))
    return b"-----BEGIN PRIVATE KEY-----\n" + body + b"\n-----END PRIVATE KEY-----\n"


def element(tag: int, body: bytes) -> bytes:
    """Encode a DER element."""
    length = bytes([len(body)]) if len(body) < 128 else b"\x82" + len(body).to_bytes(2, "big")
    return bytes([tag]) + length + body
