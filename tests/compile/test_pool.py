"""The worker pool: bounds, fairness, nothing lost on cancellation."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from stapsrv.compile.pool import PoolStatistics, WorkerPool
from stapsrv.errors import RequestRejected

pytestmark = pytest.mark.anyio


class Requests:
    """Starts requests on a pool one after the other and notes the order in which they get a worker."""

    def __init__(self, pool: WorkerPool, tasks: anyio.abc.TaskGroup) -> None:
        self.pool = pool
        self.tasks = tasks
        self.order: list[str] = []
        self.finish: dict[str, anyio.Event] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def start(self, name: str, client: str) -> None:
        self.finish[name] = anyio.Event()
        self.scopes[name] = anyio.CancelScope()
        self.tasks.start_soon(self._hold, name, client)
        await anyio.wait_all_tasks_blocked()

    async def end(self, name: str) -> None:
        self.finish[name].set()
        await anyio.wait_all_tasks_blocked()

    async def _hold(self, name: str, client: str) -> None:
        with self.scopes[name]:
            async with self.pool.worker(client):
                self.order.append(name)
                await self.finish[name].wait()


@pytest.fixture
async def tasks():
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            yield group
            group.cancel_scope.cancel()


async def test_as_many_run_as_there_are_workers(tasks):
    pool = WorkerPool(2, queue_length=10)
    requests = Requests(pool, tasks)
    for name in "abc":
        await requests.start(name, "client")
    assert requests.order == ["a", "b"]
    assert pool.statistics() == PoolStatistics(workers=2, running=2, queued=1)
    await requests.end("a")
    assert requests.order == ["a", "b", "c"]
    assert pool.statistics() == PoolStatistics(workers=2, running=2, queued=0)


async def test_client_with_nothing_running_waits_only_for_what_runs(tasks):
    requests = Requests(WorkerPool(1, queue_length=10), tasks)
    await requests.start("running", "greedy")
    for number in range(3):
        await requests.start(f"greedy{number}", "greedy")
    await requests.start("modest", "modest")
    for name in ("running", "modest", "greedy0", "greedy1", "greedy2"):
        await requests.end(name)
    assert requests.order == ["running", "modest", "greedy0", "greedy1", "greedy2"]


async def test_clients_take_turns(tasks):
    requests = Requests(WorkerPool(1, queue_length=20), tasks)
    await requests.start("running", "x")
    for number in range(3):
        for client in "abc":
            await requests.start(f"{client}{number}", client)
    await requests.end("running")
    for _ in range(9):
        await requests.end(requests.order[-1])
    assert requests.order[1:] == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


async def test_newcomers_one_after_the_other_keep_nobody_waiting_for_ever(tasks):
    requests = Requests(WorkerPool(1, queue_length=20), tasks)
    await requests.start("running", "greedy")
    await requests.start("waiting", "greedy")
    for number in range(3):
        await requests.start(f"new{number}", f"new{number}")
        await requests.end(requests.order[-1])
    assert requests.order == ["running", "new0", "waiting", "new1"]


async def test_full_queue_rejects_at_once(tasks):
    pool = WorkerPool(1, queue_length=1)
    requests = Requests(pool, tasks)
    assert not pool.is_full
    await requests.start("a", "client")
    await requests.start("b", "client")
    assert pool.is_full
    with pytest.raises(RequestRejected, match=r"^The server is busy: 1 requests are waiting already"):
        async with pool.worker("other"):
            pytest.fail("a worker was given beyond the bound")


async def test_cancelled_waiter_leaves_its_place(tasks):
    pool = WorkerPool(1, queue_length=2)
    requests = Requests(pool, tasks)
    for name in "abc":
        await requests.start(name, "client")
    requests.scopes["b"].cancel()
    await anyio.wait_all_tasks_blocked()
    assert pool.statistics().queued == 1
    await requests.end("a")
    assert requests.order == ["a", "c"]


async def test_waiter_cancelled_while_granted_gives_the_worker_on(tasks):
    pool = WorkerPool(1, queue_length=2)
    requests = Requests(pool, tasks)
    for name in "abc":
        await requests.start(name, "client")
    # Both in one turn of the loop: the worker is granted to b, which is cancelled before it runs.
    requests.finish["a"].set()
    requests.scopes["b"].cancel()
    await anyio.wait_all_tasks_blocked()
    assert requests.order[-1] == "c"
    await requests.end("c")
    assert pool.statistics() == PoolStatistics(workers=1, running=0, queued=0)


async def test_failing_request_gives_its_worker_back():
    pool = WorkerPool(1, queue_length=0)
    with pytest.raises(ZeroDivisionError):
        async with pool.worker("client"):
            raise ZeroDivisionError
    assert pool.statistics().running == 0


async def test_parent_bounds_the_total_and_serves_its_children_in_turn(tasks):
    total = WorkerPool(1, queue_length=None)
    one, two = (Requests(WorkerPool(4, queue_length=10, parent=total), tasks) for _ in range(2))
    await one.start("one.a", "x")
    await one.start("one.b", "x")
    await one.start("one.c", "x")
    await two.start("two.a", "x")
    assert total.statistics() == PoolStatistics(workers=1, running=1, queued=3)
    assert one.pool.statistics() == PoolStatistics(workers=4, running=1, queued=2)
    await one.end("one.a")
    assert (one.order, two.order) == (["one.a"], ["two.a"])
    await two.end("two.a")
    await one.end("one.b")
    assert one.order == ["one.a", "one.b", "one.c"]


async def test_pool_that_grows_serves_those_who_wait(tasks):
    requests = Requests(WorkerPool(1, queue_length=None), tasks)
    for name in "abc":
        await requests.start(name, name)
    requests.pool.resize(2)
    await anyio.wait_all_tasks_blocked()
    assert requests.order == ["a", "b"]
    assert requests.pool.statistics() == PoolStatistics(workers=2, running=2, queued=1)


async def test_pool_that_shrinks_gives_no_worker_until_enough_are_back(tasks):
    requests = Requests(WorkerPool(2, queue_length=None), tasks)
    for name in "abc":
        await requests.start(name, name)
    requests.pool.resize(1)
    await requests.end("a")
    assert requests.order == ["a", "b"]
    await requests.end("b")
    assert requests.order == ["a", "b", "c"]
