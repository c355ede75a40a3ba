"""What a process sees of itself: its children, and how late its event loop is."""

from __future__ import annotations

import subprocess
import sys

import anyio
import pytest

from stapsrv.compile.stats import Histogram
from stapsrv.observe.snapshot import own_children, sample_lag


def test_own_children_are_listed():
    before = own_children()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert own_children() == before | {child.pid}
    child.communicate()
    assert own_children() == before


@pytest.mark.anyio
async def test_lag_of_the_loop_is_sampled():
    thrice = anyio.Event()

    class Counted(Histogram):
        def add(self, seconds: float) -> None:
            super().add(seconds)
            if sum(self.counts) == 3:
                thrice.set()

    lag = Counted()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: sample_lag(lag, interval_s=0.01))
            await thrice.wait()
            tasks.cancel_scope.cancel()
    assert 0 <= lag.total_s < 10
