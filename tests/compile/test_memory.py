"""Memory over all clients: its bound, whose turn it is, and that nothing of it is lost."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from stapsrv.compile.memory import MemoryBudget, RequestMemory
from stapsrv.errors import RequestRejected
from stapsrv.rejection import RejectReason

pytestmark = pytest.mark.anyio


class Clients:
    """Starts claims one after the other, and notes the order in which they are granted."""

    def __init__(self, memory: MemoryBudget, tasks: anyio.abc.TaskGroup) -> None:
        self.memory = memory
        self.tasks = tasks
        self.granted: list[str] = []
        self.releases: dict[str, Callable[[], None]] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def start(self, name: str, size: int) -> None:
        """Claim for the client that is the first letter of ``name``."""
        self.scopes[name] = anyio.CancelScope()
        self.tasks.start_soon(self._claim, name, size)
        await anyio.wait_all_tasks_blocked()

    async def release(self, name: str) -> None:
        self.releases.pop(name)()
        await anyio.wait_all_tasks_blocked()

    async def _claim(self, name: str, size: int) -> None:
        with self.scopes[name]:
            self.releases[name] = await self.memory.claim(name[0], size, wait_s=60)
            self.granted.append(name)


@pytest.fixture
async def clients():
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            yield Clients(MemoryBudget(100), tasks)
            tasks.cancel_scope.cancel()


async def test_what_does_not_fit_waits(clients):
    await clients.start("a1", 60)
    await clients.start("b1", 60)
    assert (clients.granted, clients.memory.held_bytes) == (["a1"], 60)
    await clients.release("a1")
    assert (clients.granted, clients.memory.held_bytes) == (["a1", "b1"], 60)
    await clients.release("b1")
    assert clients.memory.held_bytes == 0


async def test_what_is_larger_than_all_gets_it_alone(clients):
    await clients.start("a1", 1)
    await clients.start("b1", 1000)
    await clients.start("c1", 1)
    assert clients.granted == ["a1"]
    await clients.release("a1")
    assert clients.granted == ["a1", "b1"]
    await clients.release("b1")
    assert clients.granted == ["a1", "b1", "c1"]


async def test_room_goes_to_the_client_that_holds_the_least(clients):
    for number in range(2):
        await clients.start(f"a{number}", 50)
    for number in range(2, 9):
        await clients.start(f"a{number}", 50)
    await clients.start("b1", 50)
    await clients.release("a0")
    assert clients.granted == ["a0", "a1", "b1"]


async def test_claim_that_is_cancelled_leaves_its_place(clients):
    await clients.start("a1", 100)
    await clients.start("b1", 100)
    await clients.start("c1", 10)
    clients.scopes["b1"].cancel()
    await anyio.wait_all_tasks_blocked()
    await clients.release("a1")
    assert clients.granted == ["a1", "c1"]
    await clients.release("c1")
    assert clients.memory.held_bytes == 0


async def test_wait_is_bounded():
    memory = MemoryBudget(10)
    release = await memory.claim("a", 10, wait_s=1)
    with pytest.raises(RequestRejected, match="no memory was free") as caught:
        await memory.claim("b", 1, wait_s=0.05)
    assert caught.value.reject_reason is RejectReason.MEMORY
    release()
    assert memory.held_bytes == 0
    (await memory.claim("b", 10, wait_s=1))()


async def test_requests_and_answers_have_half_each():
    memory = RequestMemory.of(20)
    release_request = await memory.requests.claim("a", 10, wait_s=1)
    release_answer = await memory.answers.claim("a", 10, wait_s=1)
    release_request()
    release_answer()
