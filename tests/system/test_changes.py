"""A count of changes: who waits misses none, also those between two waits."""

from __future__ import annotations

import anyio
import pytest

from stapsrv.system.changes import ChangeCount

pytestmark = pytest.mark.anyio


async def test_waiting_ends_with_the_next_change():
    changes = ChangeCount()
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(changes.wait_beyond, 0)
        await anyio.wait_all_tasks_blocked()
        changes.note()


async def test_change_before_the_wait_is_not_missed():
    changes = ChangeCount()
    changes.note()
    with anyio.fail_after(5):
        await changes.wait_beyond(0)
    with anyio.move_on_after(0.01) as scope:
        await changes.wait_beyond(1)
    assert scope.cancelled_caught
