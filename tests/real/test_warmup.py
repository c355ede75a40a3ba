"""The first compile after a start, by the real stap, contained as a request is."""

from __future__ import annotations

import re


def test_each_release_is_compiled_for_once(serve, stap):
    server = serve("--warmup", "yes")
    found = server.log.wait(r"^.*: Kernel release (\S+) can be compiled for; a first compile took [\d.]+ s$")
    assert found[1] == stap.installation.release
    again = serve("--warmup", "yes")
    ran = stap.via(again.port, "-p4", "-e", "probe begin { exit() }")
    assert ran.status == 0
    again.log.wait("Request from .* complete")
    assert not any(re.search("can be compiled for", line) for line in again.log.lines)
