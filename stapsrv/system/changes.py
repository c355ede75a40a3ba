"""Counts changes, for tasks that wait for the next one: noting a change costs nothing while nobody waits."""

from __future__ import annotations

import anyio


class ChangeCount:
    """A count of changes that can be waited on.

    Who looks, and then waits for what came after ``count``, misses none::

        seen = changes.count
        look()
        await changes.wait_beyond(seen)
    """

    def __init__(self) -> None:
        self.count = 0
        self._next: anyio.Event | None = None

    def note(self) -> None:
        """Count a change, and wake who waits for one."""
        self.count += 1
        if self._next is not None:
            self._next.set()
            self._next = None

    async def wait_beyond(self, count: int) -> None:
        """Wait until there were more changes than ``count``."""
        while self.count <= count:
            if self._next is None:
                self._next = anyio.Event()
            await self._next.wait()
