"""Single flight: equal requests that are in the server at the same time cost one compile.

The first request of its kind begins a flight, later ones join it, and all get the same value. A flight
belongs to the server and to no session: a request that leaves takes nothing from the others, and when the
last one has left, the flight is ended.

A flight queues in the name of the client that began it. So that somebody's hundred requests do not delay the
client that joins the last of them, the first few clients to join a flight that still queues each take a
place of their own in the queue; the flight begins with the first worker that any of them gets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Generic, TypeVar

import anyio
import attrs
from anyio.abc import TaskGroup

from stapsrv.errors import TranslatorError

T = TypeVar("T")

# Holds a worker; waits for one first, in the turn of the client that it was made for.
Worker = Callable[[], AbstractAsyncContextManager[None]]
Work = Callable[[], Awaitable[T]]
Finish = Callable[[T], Awaitable[None]]

# How long the end of a server waits for flights whose value is out to finish.
_FINISH_S = 10.0
# More would let equal requests fill the queue that they are there to spare.
_MAX_QUEUE_PLACES = 4


@attrs.frozen
class FlightResult(Generic[T]):
    """The value of a flight, and whether another request had begun it."""

    value: T
    joined: bool


class SingleFlight(Generic[T]):
    """The flights of one server, used within :meth:`open`; ``max_finishing`` may finish without a worker."""

    def __init__(self, *, max_finishing: int) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}
        self._tasks: TaskGroup | None = None
        self._finishing = anyio.Semaphore(max_finishing)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Allow flights while the block runs; at its end, those without a value are cancelled.

        All calls of :meth:`run` are made within the block. Flights with a value get some seconds to finish.
        """
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                for flight in self._flights.values():
                    flight.cancel()
                tasks.cancel_scope.deadline = anyio.current_time() + _FINISH_S

    @property
    def begun(self) -> int:
        """The number of requests whose flight has a worker and no value yet."""
        return sum(flight.waiting for flight in self._flights.values() if flight.begun)

    def is_flying(self, key: Hashable) -> bool:
        """Whether a request with this key would join a flight."""
        return key in self._flights

    def has_begun(self, key: Hashable) -> bool:
        """Whether the flight that a request with this key would join has a worker."""
        flight = self._flights.get(key)
        return flight is not None and flight.begun

    async def run(
        self, key: Hashable, client: Hashable, *, worker: Worker, work: Work[T], finish: Finish[T]
    ) -> FlightResult[T]:
        """Return the value of the flight of this key; begin it, with ``work``, if there is none.

        ``finish``, which raises nothing, is given the value when all requests have it; nobody waits for it.

        Raises:
            Exception: whatever ``work`` raised, in all who wait; what ``worker`` raised, if no place in the
                queue is left to the flight.

        Cancellation: the last to leave cancels the flight, and returns when nothing of it is left.
        """
        if self._tasks is None:
            raise TranslatorError("The server is closed")
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight(work, finish)
        if not flight.begun and client not in flight.clients and len(flight.clients) < _MAX_QUEUE_PLACES:
            flight.clients.add(client)
            place = anyio.CancelScope()
            flight.places.append(place)
            self._tasks.start_soon(self._run, key, flight, worker, place)
        flight.waiting += 1
        try:
            await flight.done.wait()
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.done.is_set():
                self._forget(key, flight)
                flight.cancel()
                with anyio.CancelScope(shield=True):
                    await flight.done.wait()
        return FlightResult(flight.result(), joined)

    async def _run(self, key: Hashable, flight: _Flight[T], worker: Worker, place: anyio.CancelScope) -> None:
        """Queue, and be the one that works unless another place had a worker first."""
        works = False
        try:
            with place:
                async with AsyncExitStack() as landed, worker():
                    works = not flight.begun
                    if works:
                        flight.begin(place)
                        flight.values.append(await flight.work())
                        # All requests have their value now, and the next one gets the worker; but not
                        # where many finish already, so that what compiles leave behind stays bounded.
                        self._done(key, flight)
                        try:
                            await self._finishing.acquire()
                            landed.callback(self._finishing.release)
                        finally:
                            landed.push_async_callback(flight.finish, flight.values[0])
        except Exception as exc:
            if works and flight.done.is_set():
                raise
            # Raised to every request that waits for it.
            if works or not flight.begun:
                flight.fault, flight.origin = exc, exc.__traceback__
        finally:
            flight.places.remove(place)
            if not flight.places:
                self._done(key, flight)

    def _done(self, key: Hashable, flight: _Flight[T]) -> None:
        self._forget(key, flight)
        flight.done.set()

    def _forget(self, key: Hashable, flight: _Flight[T]) -> None:
        # The next equal request begins a flight; a successor of this one stays.
        if self._flights.get(key) is flight:
            del self._flights[key]


@attrs.define(eq=False)
class _Flight(Generic[T]):
    work: Work[T]
    finish: Finish[T]
    waiting: int = 0
    clients: set[Hashable] = attrs.field(factory=set)
    places: list[anyio.CancelScope] = attrs.field(factory=list)
    begun: bool = False
    # Of length one when there is a value: that may be None.
    values: list[T] = attrs.field(factory=list)
    fault: Exception | None = None
    origin: TracebackType | None = None
    done: anyio.Event = attrs.field(factory=anyio.Event)

    def begin(self, place: anyio.CancelScope) -> None:
        """Work at ``place``, and give the other places back."""
        self.begun = True
        for other in self.places:
            if other is not place:
                other.cancel()

    def cancel(self) -> None:
        for place in self.places:
            place.cancel()

    def result(self) -> T:
        if self.values:
            return self.values[0]
        if self.fault is None:
            raise TranslatorError("The compile was ended")
        # Where it was raised, without what other requests have added to the traceback.
        raise self.fault.with_traceback(self.origin)
