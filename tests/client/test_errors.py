"""How the client's errors read."""

from __future__ import annotations

from stapsrv.client.errors import ServerNotTrusted, UnknownServer


def test_unknown_server_says_its_fingerprint_and_what_to_do():
    error = UnknownServer("build:5001", "SHA256:AA")
    assert isinstance(error, ServerNotTrusted)
    assert (error.address, error.fingerprint, error.exit_status) == ("build:5001", "SHA256:AA", 1)
    assert str(error).startswith("build:5001 is not known; its certificate is SHA256:AA; compare that")
    assert "--fingerprint" in str(error)
