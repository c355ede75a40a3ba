"""What the sessions of one server share, and what all servers of a process do."""

from __future__ import annotations

import attrs
import pytest
from kit.service import running_server

from stapsrv.rejection import RejectReason

pytestmark = pytest.mark.anyio


async def test_rejections_are_counted_for_the_server_and_for_the_process():
    async with running_server() as running:
        one = running.service
        # As a server that is started again: new counts of its own, the old ones of the process.
        two = attrs.evolve(one, rejections=attrs.NOTHING)
        for service in (one, two, two):
            service.rejections.count(RejectReason.DENIED, lambda: None)
    assert one.rejections.counts[RejectReason.DENIED] == 1
    assert two.rejections.counts[RejectReason.DENIED] == 2
    assert one.counters.refusals[RejectReason.DENIED] == 3
