"""Bounded workers and a bounded, fair queue in front of them.

A worker is a permission to run one compile, or to sign one answer. Requests that find none free wait by
client; a freed worker goes to the client that was served longest ago. A client with nothing running counts as
served just before the last one that was: a hundred requests of one client delay another's single one by what
runs already, and a stream of newcomers keeps nobody waiting for ever.
"""

from __future__ import annotations

import math
from collections import Counter
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
    """``workers`` permissions, and at most ``queue_length`` requests that wait for one (None: any number).

    It draws from ``parent`` as well, for a total over several servers. A parent sees each child pool as one
    client, so its workers are shared fairly between the servers.
    """

    def __init__(self, workers: int, *, queue_length: int | None, parent: WorkerPool | None = None) -> None:
        self._workers = workers
        self.queue_length = queue_length
        self._parent = parent
        # In the order in which they came: what is set when it is a client's turn, and the client.
        self._waiting: dict[anyio.Event, Hashable] = {}
        self._held: Counter[Hashable] = Counter()
        # Workers given so far; and, for each client with something running or waiting, which was its last.
        self._granted = 0
        self._last_granted: dict[Hashable, float] = {}
        self._waiting_for_parent = 0

    @property
    def is_full(self) -> bool:
        """Whether a request that came now would be rejected."""
        is_busy = self._held.total() >= self._workers
        return is_busy and self.queue_length is not None and len(self._waiting) >= self.queue_length

    def statistics(self) -> PoolStatistics:
        """Return how many requests run and wait."""
        waiting = self._waiting_for_parent
        return PoolStatistics(self._workers, self._held.total() - waiting, len(self._waiting) + waiting)

    def resize(self, workers: int) -> None:
        """Have so many workers; where more are held, the next ones are given when these are back."""
        self._workers = workers
        self._grant_waiting()

    @asynccontextmanager
    async def worker(self, client: Hashable, *, wait_s: float = math.inf) -> AsyncIterator[None]:
        """Hold a worker, for which the client waits in its turn.

        Raises:
            RequestRejected: the queue is full, or no worker was free within ``wait_s``.
        """
        async with AsyncExitStack() as held:
            with anyio.move_on_after(wait_s) as scope:
                await self._acquire(client)
                held.callback(self._release, client)
                if self._parent is not None:
                    self._waiting_for_parent += 1
                    try:
                        await held.enter_async_context(self._parent.worker(self))
                    finally:
                        self._waiting_for_parent -= 1
            if scope.cancelled_caught:
                raise RequestRejected(
                    f"The server is busy: no worker was free within {wait_s:g} seconds",
                    remedy="try again later",
                    reject_reason=RejectReason.QUEUE_TIMEOUT,
                )
            yield

    async def _acquire(self, client: Hashable) -> None:
        if self._held.total() < self._workers:
            self._grant(client)
            return
        if self.is_full:
            raise RequestRejected(
                f"The server is busy: {len(self._waiting)} requests are waiting already",
                remedy="try again later",
                reject_reason=RejectReason.QUEUE_LENGTH,
            )
        granted = anyio.Event()
        self._last_granted.setdefault(client, self._granted - 0.5)
        self._waiting[granted] = client
        try:
            await granted.wait()
        except BaseException:
            # Cancelled: perhaps after the worker was granted, before this task has run again.
            if granted.is_set():
                self._release(client)
            else:
                del self._waiting[granted]
                self._forget_unless_needed(client)
            raise

    def _release(self, holder: Hashable) -> None:
        """Hand the worker of ``holder`` to the next client in turn, or back to the pool."""
        self._held[holder] -= 1
        self._grant_waiting()
        self._forget_unless_needed(holder)

    def _grant_waiting(self) -> None:
        while self._waiting and self._held.total() < self._workers:
            # Of a client's, and of equal clients, the first that came: dictionaries keep their order.
            granted = min(self._waiting, key=lambda event: self._last_granted[self._waiting[event]])
            self._grant(self._waiting.pop(granted))
            granted.set()

    def _grant(self, client: Hashable) -> None:
        self._granted += 1
        self._last_granted[client] = self._granted
        self._held[client] += 1

    def _forget_unless_needed(self, client: Hashable) -> None:
        """Drop what is no longer of use for a client: clients come and go without end."""
        if not self._held[client]:
            del self._held[client]
            if client not in self._waiting.values():
                self._last_granted.pop(client, None)
