"""The first compile after a start, by the real stap, contained as a request is."""

from __future__ import annotations

import re

import attrs
import pytest
from kit.real import serving
from kit.warm import copy_runtime


def test_each_release_is_compiled_for_once(serve, stap):
    # A server of another test may have done that here.
    (stap.directory / "warm-releases").unlink(missing_ok=True)
    server = serve("--warmup", "yes", caching=True)
    found = server.log.wait(r"^.*: Kernel release (\S+) can be compiled for; a first compile took [\d.]+ s$")
    assert found[1] == stap.installation.release
    again = serve("--warmup", "yes", caching=True)
    ran = stap.via(again.port, "-p4", "-e", "probe begin { exit() }")
    assert ran.status == 0
    again.log.wait("Request from .* complete")
    assert not any(re.search("can be compiled for", line) for line in again.log.lines)


@pytest.mark.timeout(900)  # the warm-up gives way to everything else on the machine
def test_what_it_found_out_the_compiles_of_clients_have(stap, tmp_path):
    """A user's own stap, whose cache has nothing, has the server find it out: a cold compile."""
    fresh = attrs.evolve(stap, directory=tmp_path / "fresh")
    copy_runtime(stap, tmp_path / "runtime")
    with serving(fresh, "--warmup", "yes", f"-R{tmp_path / 'runtime'}") as server:
        server.log.wait(r": Kernel release \S+ can be compiled for; ", timeout_s=800)
        (known,) = fresh.directory.glob("server-toolchains/*/*/stapconf_*.h")
        ran = fresh.via(server.port, "-p4", "-vv", "-e", "probe begin { exit() }")
        assert ran.status == 0, ran.stderr
        assert f"Pass 4: using cached <server>/cache/{known.parent.name}/{known.name}" in ran.stderr
