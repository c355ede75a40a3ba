"""Compiles of the server's own scripts, by a stand-in for stap."""

from __future__ import annotations

import pytest
from kit.kernel import MODULE, started

from stapsrv.compile.health import Health
from stapsrv.supervisor.operations import ServerSpec

pytestmark = pytest.mark.anyio


async def test_it_has_a_low_priority(bench, kernel):
    """Which it is given when it has begun, before or after the five that each compile has: it looks again."""
    kernel.answer(f"""
        seen=
        until case $seen in 1[05]' 10' | 1[05]' ' | *autogroup*) true ;; *) false ;; esac; do
            seen="$(nice) $(cut -d' ' -f3 /proc/self/autogroup 2>&1)"
        done
        {MODULE}
    """)
    async with started(bench) as (_, _, healths):
        await healths.wait(Health.HEALTHY)


async def test_one_is_compiled_for_at_a_time(bench, kernel, tmp_path):
    """Each run fails if another one is under way."""
    kernel.answer(f"mkdir {tmp_path}/busy || exit 1; {MODULE}; sleep 0.1; rmdir {tmp_path}/busy")
    specs = [ServerSpec(bench.settings(warmup=True, define=(f"A={number}",))) for number in range(4)]
    async with started(bench) as (supervisor, _, healths):
        await supervisor.start(specs)
        await healths.wait(Health.HEALTHY, 5)
    assert Health.UNHEALTHY not in healths.seen
