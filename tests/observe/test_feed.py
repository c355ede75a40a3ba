"""Updates for those who watch: by change, at their own pace, and nothing else."""

from __future__ import annotations

import contextlib

import anyio
import pytest
from kit.supervisor import FakeSupervisor, server_status

from stapsrv.compile.stats import RequestRecord, Stage
from stapsrv.observe.feed import LiveFeed
from stapsrv.observe.live import Differences, LiveState

pytestmark = pytest.mark.anyio


class Watched:
    """A fake supervisor and its feed, which counts how often the supervisor's state is read."""

    def __init__(self) -> None:
        self.supervisor = FakeSupervisor(server_status(7), server_status(8))
        self.looks = 0
        self.feed = LiveFeed(self._status, self.supervisor.activity)

    def _status(self):
        self.looks += 1
        return self.supervisor.status()

    def updates(self, **pace: float):
        return contextlib.aclosing(self.feed.updates(**({"least_s": 0.0, "heartbeat_s": 60.0} | pace)))


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def next_of(updates) -> LiveState | Differences:
    with anyio.fail_after(30):
        return (await anext(updates)).news


async def test_first_update_is_the_state_and_the_next_what_differs(watched):
    async with watched.updates() as updates:
        first = await next_of(updates)
        assert set(first.servers) == {7, 8}
        watched.supervisor.change(8, running=1)
        second = await next_of(updates)
        assert {key: server.work.running for key, server in second.servers.items()} == {8: 1}
        record = RequestRecord()
        with watched.supervisor.activity.follow(record, server=8, client="c"):
            assert set((await next_of(updates)).running) == {1}
            record.enter(Stage.COMPILE)
            assert (await next_of(updates)).running[1].stage is Stage.COMPILE
        last = await next_of(updates)
        assert (set(last.recent), last.gone) == ({1}, {"running": (1,)})


async def test_reader_who_is_away_gets_one_update_for_all_that_happened(watched):
    async with watched.updates() as updates:
        await next_of(updates)
        for number in range(1, 100):
            watched.supervisor.change(7, running=number)
        assert (await next_of(updates)).servers[7].work.running == 99
        with anyio.move_on_after(0.05) as scope:
            await anext(updates)
        assert scope.cancelled_caught


async def test_whole_state_takes_the_place_of_larger_differences(watched):
    async with watched.updates() as updates:
        await next_of(updates)
        watched.supervisor.servers.clear()
        watched.supervisor.activity.changes.note()
        assert isinstance(await next_of(updates), LiveState)


async def test_supervisor_is_looked_at_only_for_changes_and_once_for_all_readers(watched):
    async with watched.updates() as one, watched.updates() as other:
        await next_of(one)
        await next_of(other)
        assert watched.looks == 1
        watched.supervisor.change(7, running=1)
        await next_of(one)
        await next_of(other)
        assert watched.looks == 2
    for number in range(50):
        watched.supervisor.change(7, running=number)
    await anyio.wait_all_tasks_blocked()
    assert watched.looks == 2


async def test_two_updates_are_apart(watched):
    async with watched.updates(least_s=0.1) as updates:
        await next_of(updates)
        began = anyio.current_time()
        watched.supervisor.change(7, running=1)
        await next_of(updates)
        assert anyio.current_time() - began >= 0.09


async def test_heartbeat_finds_what_nobody_noted(watched):
    async with watched.updates(heartbeat_s=0.05) as updates:
        await next_of(updates)
        assert await next_of(updates) == Differences()
        del watched.supervisor.servers[8]
        assert (await next_of(updates)).gone == {"servers": (8,)}
