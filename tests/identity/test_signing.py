"""The signature of a module, checked with openssl."""

from __future__ import annotations

import pytest
from kit import openssl

from stapsrv.identity.signing import sign_module


@pytest.mark.parametrize(
    "module", [b"", b"module\n", bytes(range(256)) * 1000], ids=["empty", "short", "long"]
)
def test_openssl_verifies_it(made, module):
    signature = sign_module(made.key, module)
    assert len(signature) == made.key.key_size // 8
    assert signature == sign_module(made.key, module)
    assert openssl.verifies(certificate=made.der, data=module, signature=signature)
    spoilt = signature[:-1] + bytes([signature[-1] ^ 1])
    assert not openssl.verifies(certificate=made.der, data=module, signature=spoilt)
    assert not openssl.verifies(certificate=made.der, data=module + b"\0", signature=signature)


def test_another_server_s_certificate_does_not_verify_it(made, another):
    signature = sign_module(made.key, b"module")
    assert not openssl.verifies(certificate=another.der, data=b"module", signature=signature)
