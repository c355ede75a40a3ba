"""Certificate databases go back and forth between SystemTap's own server and this one."""

from __future__ import annotations

import attrs
import pytest
from kit.real import serving, serving_original

REQUEST = ("-p2", "-e", "probe begin { exit() }")
ANSWER = "begin /* <- begin */\n"


@pytest.mark.parametrize(
    ("maker", "other"), [(serving_original, serving), (serving, serving_original)], ids=["original's", "ours"]
)
def test_database_that_the_other_made(stranger, tmp_path, maker, other):
    """A client that was made to trust the one trusts the other, too."""
    place = tmp_path / "owner"
    place.mkdir()
    owner = attrs.evolve(stranger, place=place, directory=place / "systemtap")
    certificate = owner.directory / "ssl/server/stap.cert"
    with maker(owner) as server:
        trusting = stranger.via(server.port, "--trust-servers=ssl,no-prompt", release=None)
        assert trusting.status == 0, trusting.stderr
        made = certificate.read_bytes()
        assert stranger.via(server.port, *REQUEST).stdout.endswith(ANSWER)

    with other(owner) as server:
        assert server.log.count("Certificate is valid") == 1
        assert server.log.count("Generating a new certificate") == 0
        assert certificate.read_bytes() == made
        for client in (stranger, owner):
            ran = client.via(server.port, *REQUEST)
            assert ran.status == 0, ran.stderr
            assert ran.stdout.endswith(ANSWER)
