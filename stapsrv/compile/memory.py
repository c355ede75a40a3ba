"""Memory for requests and answers, bounded over all clients; a request that finds none left waits its turn.

A client that does not read its answer keeps it in memory until its time for that is over, and so may
hundreds. Room goes to the client that holds the least: one with a single request does not wait for all the
requests of another. Requests and answers have half of the memory each, so that no answer waits for a request
which itself waits for an answer.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable

import anyio
import attrs

from stapsrv.errors import RequestRejected
from stapsrv.rejection import RejectReason


class MemoryBudget:
    """``most_bytes`` for all; what is larger than that gets them when nobody else holds any."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: Counter[Hashable] = Counter()
        self._waiting: list[_Claim] = []

    @property
    def held_bytes(self) -> int:
        """The number of bytes held by all."""
        return self._held.total()

    async def claim(self, client: Hashable, size: int, *, wait_s: float) -> Callable[[], None]:
        """Claim ``size`` bytes; return what gives them back.

        Raises:
            RequestRejected: they were not free within ``wait_s``.
        """
        claim = _Claim(client, size)
        self._waiting.append(claim)
        with contextlib.ExitStack() as undo:
            undo.callback(self._release, claim)
            self._grant()
            with anyio.move_on_after(wait_s):
                await claim.granted.wait()
            if not claim.granted.is_set():
                raise RequestRejected(
                    f"The server is busy: no memory was free within {wait_s:g} seconds",
                    remedy="try again later",
                    reject_reason=RejectReason.MEMORY,
                )
            return undo.pop_all().close

    def _release(self, claim: _Claim) -> None:
        """Give back what a claim holds, or its place."""
        if claim.granted.is_set():
            self._held[claim.client] -= claim.size
            if not self._held[claim.client]:
                del self._held[claim.client]
        else:
            self._waiting.remove(claim)
        self._grant()

    def _grant(self) -> None:
        """Grant what fits, in turn; a large claim whose turn it is does not let smaller ones pass."""
        while self._waiting:
            claim = min(self._waiting, key=lambda waiting: self._held[waiting.client])
            held = self.held_bytes
            if held and held + claim.size > self._most_bytes:
                return
            self._waiting.remove(claim)
            self._held[claim.client] += claim.size
            claim.granted.set()


@attrs.frozen(eq=False)
class _Claim:
    """The memory that one request waits for, or holds."""

    client: Hashable
    size: int
    granted: anyio.Event = attrs.field(factory=anyio.Event)


@attrs.frozen
class RequestMemory:
    """The memory of all servers of a process."""

    requests: MemoryBudget
    answers: MemoryBudget

    @classmethod
    def of(cls, most_bytes: int) -> RequestMemory:
        """Share ``most_bytes`` out."""
        return cls(MemoryBudget(most_bytes // 2), MemoryBudget(most_bytes // 2))
