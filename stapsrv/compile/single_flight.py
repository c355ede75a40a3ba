"""Single flight: equal requests that are in the server at the same time cost one compile.

The first request of its kind begins a flight, later ones join it, and all get what it lands with. A
flight belongs to the server and to no session: whoever leaves, the others lose nothing, and when the
last has left it is ended. It holds one worker, however many wait for it, and until all is tidied up: nobody
waits for that.

A flight queues in the name of the client that began it. Lest somebody's hundred requests delay the
client that joins the last of them, the first few clients to join a flight that still queues each take a
place of their own in the queue; the flight begins with the first worker that any of them gets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Generic, TypeVar

import anyio
import attrs
from anyio.abc import TaskGroup

from stapsrv.errors import TranslatorError

T = TypeVar("T")

Worker = Callable[[], AbstractAsyncContextManager[None]]
"""Holds a worker; waits for one first, in the turn of the client that it was made for."""

Work = Callable[[], AbstractAsyncContextManager[T]]
"""Gives what a flight lands with; leaving it tidies up, and raises nothing."""

_TIDY_S = 10.0
"""How long the end of a server waits until flights that have landed have tidied up."""
_PLACES = 4
"""In the queue, for one flight: more would let equal requests fill the queue that they mean to spare."""


@attrs.frozen
class FlightResult(Generic[T]):
    """What a flight came to.

    Attributes:
        value: what its work gave.
        joined: somebody else had begun it.
    """

    value: T
    joined: bool


class SingleFlight(Generic[T]):
    """The flights of one server; to be used within :meth:`open`."""

    def __init__(self) -> None:
        self._aloft: dict[Hashable, _Flight[T]] = {}
        self._tasks: TaskGroup | None = None

    @property
    def aloft(self) -> int:
        """How many flights there are now."""
        return len(self._aloft)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Have flights for as long as the block runs; those that have not landed at its end are ended.

        Whoever flies does so within the block. Those that have landed get some seconds to tidy up.
        """
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                for flight in self._aloft.values():
                    flight.end()
                tasks.cancel_scope.deadline = anyio.current_time() + _TIDY_S

    async def run(self, key: Hashable, client: Hashable, *, worker: Worker, work: Work[T]) -> FlightResult[T]:
        """Return what the flight of this key lands with; begin it if there is none.

        Args:
            key: equal for requests that one answer suits.
            client: whom the request comes from.
            worker: a worker for this client.
            work: entered once it has one, if this request begins the flight, and left when it has landed.

        Raises:
            Exception: whatever ``work`` raised, to all who wait; what ``worker`` raised, if no place in the
                queue is left to the flight.

        Cancellation: the last to leave ends the flight, and leaves when nothing of it is left.
        """
        if self._tasks is None:
            raise TranslatorError("The server is closed")
        flight = self._aloft.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._aloft[key] = _Flight(work)
        if not flight.begun and client not in flight.clients and len(flight.clients) < _PLACES:
            flight.clients.add(client)
            place = anyio.CancelScope()
            flight.places.append(place)
            self._tasks.start_soon(self._run, key, flight, worker, place)
        flight.waiting += 1
        try:
            await flight.landed.wait()
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.landed.is_set():
                self._forget(key, flight)
                flight.end()
                with anyio.CancelScope(shield=True):
                    await flight.landed.wait()
        return FlightResult(flight.result(), joined)

    async def _run(self, key: Hashable, flight: _Flight[T], worker: Worker, place: anyio.CancelScope) -> None:
        """Queue, and be the one that works unless another place had a worker first."""
        works = False
        try:
            with place:
                async with worker():
                    works = not flight.begun
                    if works:
                        flight.begin(place)
                        async with flight.work() as value:
                            flight.values.append(value)
                            self._land(key, flight)
        except Exception as exc:
            if works and flight.landed.is_set():
                raise
            # Raised to every request that waits for it.
            if works or not flight.begun:
                flight.fault, flight.origin = exc, exc.__traceback__
        finally:
            flight.places.remove(place)
            if not flight.places:
                self._land(key, flight)

    def _land(self, key: Hashable, flight: _Flight[T]) -> None:
        self._forget(key, flight)
        flight.landed.set()

    def _forget(self, key: Hashable, flight: _Flight[T]) -> None:
        """Let the next equal request begin anew; a successor of this flight stays."""
        if self._aloft.get(key) is flight:
            del self._aloft[key]


@attrs.define(eq=False)
class _Flight(Generic[T]):
    """Attributes: see :class:`SingleFlight`.

    ``values`` has what the work gave, once it has; it may be None.
    """

    work: Work[T]
    waiting: int = 0
    clients: set[Hashable] = attrs.field(factory=set)
    places: list[anyio.CancelScope] = attrs.field(factory=list)
    begun: bool = False
    values: list[T] = attrs.field(factory=list)
    fault: Exception | None = None
    origin: TracebackType | None = None
    landed: anyio.Event = attrs.field(factory=anyio.Event)

    def begin(self, place: anyio.CancelScope) -> None:
        """Work at ``place``, and give the other places back."""
        self.begun = True
        for other in self.places:
            if other is not place:
                other.cancel()

    def end(self) -> None:
        """Stop queueing and working."""
        for place in self.places:
            place.cancel()

    def result(self) -> T:
        if self.values:
            return self.values[0]
        if self.fault is None:
            raise TranslatorError("The compile was ended")
        # Where it was raised, without what those who were told before have added.
        raise self.fault.with_traceback(self.origin)
