"""Bounded workers and a bounded, fair queue in front of them.

A worker is a permission to run one compile. Requests that find none free wait by client; a freed
worker goes to the clients in turn, so that one client with a hundred requests delays another client's
single one by one compile and not by a hundred.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import attrs

from stapsrv.errors import RequestRejected


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
        self._waiting: OrderedDict[Hashable, deque[_Turn]] = OrderedDict()
        self._queued = 0
        self._at_parent = 0

    @property
    def full(self) -> bool:
        """Whether a request that came now would be rejected."""
        return self._free == 0 and self._has_no_place

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
            held.callback(self._release)
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
            return
        if self._has_no_place:
            raise RequestRejected(
                f"The server is busy: {self._queued} requests are waiting already", remedy="try again later"
            )
        turn = _Turn()
        self._waiting.setdefault(client, deque()).append(turn)
        self._queued += 1
        try:
            await turn.granted.wait()
        except BaseException:
            if turn.granted.is_set():
                self._release()
            else:
                self._withdraw(client, turn)
            raise

    def _release(self) -> None:
        """Hand the worker to the next client in turn, or back to the pool."""
        if not self._waiting:
            self._free += 1
            return
        client, turns = self._waiting.popitem(last=False)
        turn = turns.popleft()
        if turns:
            self._waiting[client] = turns
        self._queued -= 1
        turn.granted.set()

    def _withdraw(self, client: Hashable, turn: _Turn) -> None:
        turns = self._waiting[client]
        turns.remove(turn)
        if not turns:
            del self._waiting[client]
        self._queued -= 1


class _Turn:
    """One request's place in the queue."""

    def __init__(self) -> None:
        self.granted = anyio.Event()
