"""Bounded workers and a bounded, fair queue in front of them.

A worker is a permission to run one compile. Requests that find none free wait by client; a freed
worker goes to the client that was served longest ago. A client with nothing at work counts as served just
before the last one that was: a hundred requests of one client delay another's single one by what runs
already, and a stream of newcomers keeps nobody waiting for ever.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import attrs

from stapsrv.errors import RequestRejected
from stapsrv.rejection import RejectReason


@attrs.frozen
class PoolStatistics:
    """A snapshot of a pool."""

    workers: int
    running: int
    queued: int


class WorkerPool:
    """``workers`` permissions, and at most ``queue_length`` requests that wait for one.

    Args:
        workers: how many requests may run at the same time.
        queue_length: how many may wait; more are rejected. None where the clients are bounded themselves. May
            be changed at any time, for requests to come.
        parent: a pool that this one draws from as well, for a total over several servers. It sees each
            child pool as one client, so its workers are shared fairly between the servers.
    """

    def __init__(self, workers: int, *, queue_length: int | None, parent: WorkerPool | None = None) -> None:
        self._workers = workers
        self._free = workers
        self.queue_length = queue_length
        self._parent = parent
        self._waiting: dict[Hashable, deque[_Turn]] = {}
        self._held: Counter[Hashable] = Counter()
        self._granted = 0
        """Workers given so far."""
        self._served: dict[Hashable, float] = {}
        """Of each client with something at work or waiting, which of them was its last."""
        self._queued = 0
        self._at_parent = 0

    @property
    def full(self) -> bool:
        """Whether a request that came now would be rejected."""
        return self._free == 0 and self._has_no_place

    @property
    def most(self) -> int:
        """How many requests can run at the same time."""
        return self._workers if self._parent is None else min(self._workers, self._parent.most)

    @property
    def _has_no_place(self) -> bool:
        return self.queue_length is not None and self._queued >= self.queue_length

    def statistics(self) -> PoolStatistics:
        """Return what runs and what waits."""
        held = self._workers - self._free
        return PoolStatistics(self._workers, held - self._at_parent, self._queued + self._at_parent)

    @asynccontextmanager
    async def worker(self, client: Hashable) -> AsyncIterator[None]:
        """Hold a worker; waits for one in the client's turn.

        Args:
            client: whom the request comes from; equal values share one place in the turns.

        Raises:
            RequestRejected: the queue is full.

        Cancellation: the place in the queue, or the worker, is given back.
        """
        async with AsyncExitStack() as held:
            await self._acquire(client)
            held.callback(self._release, client)
            if self._parent is not None:
                self._at_parent += 1
                try:
                    await held.enter_async_context(self._parent.worker(self))
                finally:
                    self._at_parent -= 1
            yield

    async def _acquire(self, client: Hashable) -> None:
        if self._free:
            self._free -= 1
            self._grant(client)
            return
        if self._has_no_place:
            raise RequestRejected(
                f"The server is busy: {self._queued} requests are waiting already",
                remedy="try again later",
                refusal=RejectReason.QUEUE_LENGTH,
            )
        turn = _Turn()
        self._served.setdefault(client, self._granted - 0.5)
        self._waiting.setdefault(client, deque()).append(turn)
        self._queued += 1
        try:
            await turn.granted.wait()
        except BaseException:
            if turn.granted.is_set():
                self._release(client)
            else:
                self._withdraw(client, turn)
            raise

    def _release(self, holder: Hashable) -> None:
        """Hand the worker of ``holder`` to the next client in turn, or back to the pool."""
        self._held[holder] -= 1
        if not self._waiting:
            self._free += 1
        else:
            # Of equal ones the first that came: dictionaries keep their order.
            client = min(self._waiting, key=self._served.__getitem__)
            turn = self._waiting[client].popleft()
            self._queued -= 1
            self._grant(client)
            turn.granted.set()
            self._forget_unless_needed(client)
        self._forget_unless_needed(holder)

    def _grant(self, client: Hashable) -> None:
        self._granted += 1
        self._served[client] = self._granted
        self._held[client] += 1

    def _forget_unless_needed(self, client: Hashable) -> None:
        """Keep of a client what is of use, and no more: clients come and go without end."""
        if not self._waiting.get(client, True):
            del self._waiting[client]
        if not self._held[client]:
            del self._held[client]
            if client not in self._waiting:
                self._served.pop(client, None)

    def _withdraw(self, client: Hashable, turn: _Turn) -> None:
        self._waiting[client].remove(turn)
        self._queued -= 1
        self._forget_unless_needed(client)


class _Turn:
    """One request's place in the queue."""

    def __init__(self) -> None:
        self.granted = anyio.Event()
