"""Clients of all kinds at once, for a quarter of a minute (``make soak`` goes on for longer)."""

from __future__ import annotations

import pytest
from kit.faulty import faulty_server
from kit.soak import OPTIONS, soak

KINDS = {
    *("good", "signed", "slow", "silent", "flood", "cut short", "cut handshakes", "malformed"),
    *("left", "misbehaved", "killed"),
}


@pytest.mark.parametrize(("backend", "seed"), [("asyncio", 1), ("trio", 2)])
def test_server_is_unchanged_after_clients_of_all_kinds(tmp_path, build_tree, identity, backend, seed):
    with faulty_server(tmp_path, build_tree, identity, *OPTIONS, backend=backend) as server:
        report = soak(server, seconds=5, warm_up_s=1.5, seed=seed, memory_kb=30_000)
    assert report.faults == []
    assert report.done.keys() >= KINDS
