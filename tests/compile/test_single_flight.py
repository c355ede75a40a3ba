"""Single flight: what is shared, who pays, and who may leave."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.single_flight import FlightResult, SingleFlight, Worker
from stapsrv.errors import RequestRejected, TranslatorError

pytestmark = pytest.mark.anyio


async def nothing(_value: object) -> None:
    """Finish a flight that leaves nothing behind."""


class Airport:
    """Flights over one pool; each request is a task that can leave."""

    def __init__(
        self, flights: SingleFlight[str], tasks: anyio.abc.TaskGroup, *, workers: int, queue: int
    ) -> None:
        self.flights = flights
        self.pool = WorkerPool(workers, queue_length=queue)
        self.tasks = tasks
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.answers: dict[str, FlightResult[str] | Exception] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}
        self.gates: dict[str, anyio.Event] = {}
        self.fault: Exception | None = None
        self.finishing = anyio.Event()
        self.finishing.set()

    async def ask(self, name: str, key: str, client: str = "a") -> None:
        """Send a request; its work, if it comes to that, lasts until :meth:`open_gate` of its name."""
        self.scopes[name] = anyio.CancelScope()
        self.gates[name] = anyio.Event()
        self.tasks.start_soon(self._request, name, key, client)
        await anyio.wait_all_tasks_blocked()

    async def leave(self, name: str) -> None:
        self.scopes[name].cancel()
        await anyio.wait_all_tasks_blocked()

    async def open_gate(self, name: str) -> None:
        self.gates[name].set()
        await anyio.wait_all_tasks_blocked()

    async def _request(self, name: str, key: str, client: str) -> None:
        async def work() -> str:
            self.begun.append(name)
            try:
                await self.gates[name].wait()
                if self.fault is not None:
                    raise self.fault
            except BaseException:
                self.ended.append(name)
                raise
            return f"work of {name}"

        async def finish(value: str) -> None:
            assert value == f"work of {name}"
            try:
                await self.finishing.wait()
            finally:
                self.ended.append(name)

        with self.scopes[name]:
            try:
                self.answers[name] = await self.flights.run(
                    key, client, worker=lambda: self.pool.worker(client), work=work, finish=finish
                )
            except (RequestRejected, TranslatorError, ValueError) as exc:
                self.answers[name] = exc


@contextlib.asynccontextmanager
async def airport(workers: int = 2, queue: int = 8) -> AsyncIterator[Airport]:
    flights: SingleFlight[str] = SingleFlight(max_finishing=1)
    with anyio.fail_after(60):
        async with flights.open(), anyio.create_task_group() as tasks:
            yield Airport(flights, tasks, workers=workers, queue=queue)
            tasks.cancel_scope.cancel()
    assert not flights._flights


async def test_equal_requests_share_one_work_and_one_worker():
    async with airport() as port:
        for name in ("first", "second", "third"):
            await port.ask(name, "x", client=name)
        await port.ask("other", "y")
        assert port.begun == ["first", "other"]
        assert port.pool.statistics().running == 2
        await port.open_gate("first")
        assert port.answers == {
            "first": FlightResult("work of first", joined=False),
            "second": FlightResult("work of first", joined=True),
            "third": FlightResult("work of first", joined=True),
        }
        assert port.pool.statistics().running == 1


async def test_a_request_after_the_landing_begins_anew():
    async with airport() as port:
        await port.ask("first", "x")
        await port.open_gate("first")
        await port.ask("second", "x")
        assert port.begun == ["first", "second"]


@pytest.mark.parametrize("leaver", ["first", "second"])
async def test_others_get_their_value_when_one_request_leaves(leaver):
    stayer = {"first": "second", "second": "first"}[leaver]
    async with airport() as port:
        await port.ask("first", "x")
        await port.ask("second", "x")
        await port.leave(leaver)
        assert port.ended == []
        await port.open_gate("first")
        assert list(port.answers) == [stayer]


async def test_the_last_to_leave_ends_the_work_and_gives_the_worker_back():
    async with airport() as port:
        await port.ask("first", "x")
        await port.ask("second", "x")
        await port.leave("first")
        await port.leave("second")
        assert port.ended == ["first"]
        assert (port.pool.statistics().running, port.flights._flights) == (0, {})


async def test_an_ended_flight_s_clean_up_does_not_forget_its_successor():
    flights: SingleFlight[str] = SingleFlight(max_finishing=1)
    pool = WorkerPool(4, queue_length=0)
    cleaning, cleaned = anyio.Event(), anyio.Event()
    leaving = anyio.CancelScope()
    landed: list[FlightResult[str]] = []

    async def slow_to_end() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                cleaning.set()
                await cleaned.wait()
        return "never"

    async def quick() -> str:
        await anyio.lowlevel.checkpoint()
        return "anew"

    async def first() -> None:
        with leaving:
            await flights.run("x", "a", worker=lambda: pool.worker("a"), work=slow_to_end, finish=nothing)

    async def later(worker: anyio.Event) -> None:
        @contextlib.asynccontextmanager
        async def held() -> AsyncIterator[None]:
            await worker.wait()
            yield

        landed.append(await flights.run("x", "a", worker=held, work=quick, finish=nothing))

    with anyio.fail_after(60):
        async with flights.open(), anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await anyio.wait_all_tasks_blocked()
            leaving.cancel()
            await cleaning.wait()
            worker = anyio.Event()
            tasks.start_soon(later, worker)
            await anyio.wait_all_tasks_blocked()
            cleaned.set()
            await anyio.wait_all_tasks_blocked()
            assert len(flights._flights) == 1
            tasks.start_soon(later, worker)
            await anyio.wait_all_tasks_blocked()
            worker.set()
    assert sorted(one.joined for one in landed) == [False, True]


@pytest.mark.parametrize("fault", [TranslatorError("ended"), ValueError("crash")])
async def test_a_failing_flight_fails_all(fault):
    async with airport() as port:
        port.fault = fault
        await port.ask("first", "x")
        await port.ask("second", "x", client="b")
        await port.open_gate("first")
        assert port.answers == {"first": fault, "second": fault}
        assert (port.pool.statistics().running, port.flights._flights) == (0, {})


async def test_a_joining_client_brings_its_own_turn():
    async with airport(workers=1) as port:
        await port.ask("busy", "0", client="b")
        for number in range(1, 4):
            await port.ask(f"hog {number}", str(number), client="hog")
        await port.ask("joiner", "3", client="other")
        await port.open_gate("busy")
        await port.open_gate("hog 1")
        assert port.begun == ["busy", "hog 1", "hog 3"]
        await port.open_gate("hog 3")
        assert port.answers["joiner"] == FlightResult("work of hog 3", joined=True)
        await port.open_gate("hog 2")
        assert port.pool.statistics().running == 0


async def test_a_flight_takes_few_places_in_the_queue():
    async with airport(workers=1, queue=5) as port:
        await port.ask("busy", "0")
        for number in range(20):
            await port.ask(f"{number}", "x", client=f"client {number}")
        assert port.pool.statistics().queued == 4
        await port.open_gate("busy")
        assert (port.begun, port.pool.statistics().queued) == (["busy", "0"], 0)
        await port.open_gate("0")
        assert sum(isinstance(answer, FlightResult) for answer in port.answers.values()) == 21


async def test_a_full_queue_refuses_those_who_wait_for_it_alone():
    async with airport(workers=1, queue=1) as port:
        await port.ask("busy", "0")
        await port.ask("first", "x", client="a")
        await port.ask("second", "x", client="b")
        await port.ask("third", "y", client="c")
        assert isinstance(port.answers["third"], RequestRejected)
        await port.open_gate("busy")
        await port.open_gate("first")
        assert {"first", "second"} <= port.answers.keys()
        assert port.answers["second"] == FlightResult("work of first", joined=True)


async def test_worker_is_free_while_a_flight_finishes():
    async with airport(workers=1) as port:
        port.finishing = anyio.Event()
        await port.ask("first", "x")
        await port.open_gate("first")
        assert port.answers == {"first": FlightResult("work of first", joined=False)}
        assert port.pool.statistics().running == 0
        await port.ask("second", "x")
        assert (port.begun, port.ended) == (["first", "second"], [])
        port.finishing.set()


async def test_worker_is_held_where_too_many_flights_finish_already():
    async with airport(workers=1) as port:
        port.finishing = anyio.Event()
        for name in ("first", "second"):
            await port.ask(name, "x")
            await port.open_gate(name)
        assert list(port.answers) == ["first", "second"]
        await port.ask("third", "x")
        assert (port.begun, port.pool.statistics().queued) == (["first", "second"], 1)
        port.finishing.set()
        await anyio.wait_all_tasks_blocked()
        assert (port.begun, port.ended) == (["first", "second", "third"], ["first", "second"])


async def test_end_waits_for_flights_with_a_value_to_finish():
    async with anyio.create_task_group() as tasks, airport() as port:
        port.finishing = anyio.Event()
        await port.ask("first", "x")
        await port.open_gate("first")

        async def tidy_up() -> None:
            await anyio.wait_all_tasks_blocked()
            assert port.ended == []
            port.finishing.set()

        tasks.start_soon(tidy_up)
    assert port.ended == ["first"]


async def test_the_end_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr("stapsrv.compile.single_flight._FINISH_S", 0.05)
    async with airport() as port:
        port.finishing = anyio.Event()
        await port.ask("first", "x")
        await port.open_gate("first")
    assert port.ended == ["first"]
    assert not port.finishing.is_set()


async def test_a_place_in_the_queue_that_is_refused_after_the_landing_is_nobody_s_fault():
    flights: SingleFlight[str] = SingleFlight(max_finishing=1)
    queueing, landed = anyio.Event(), anyio.Event()

    @contextlib.asynccontextmanager
    async def refused() -> AsyncIterator[None]:
        with anyio.CancelScope(shield=True):
            queueing.set()
            await landed.wait()
        raise RequestRejected("The queue is full")
        yield

    @contextlib.asynccontextmanager
    async def late() -> AsyncIterator[None]:
        await queueing.wait()
        yield

    async def work() -> str:
        await anyio.lowlevel.checkpoint()
        return "work"

    async def ask(client: str, worker: Worker) -> None:
        assert (await flights.run("x", client, worker=worker, work=work, finish=nothing)).value == "work"
        landed.set()

    with anyio.fail_after(60):
        async with flights.open(), anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "a", late)
            tasks.start_soon(ask, "b", refused)


async def test_cancelling_everything_leaves_nothing():
    async with airport() as port:
        await port.ask("first", "x")
        await port.ask("second", "x")
    assert (port.ended, port.answers) == (["first"], {})
    assert port.pool.statistics().running == 0


async def test_nothing_flies_from_a_closed_server():
    pool = WorkerPool(1, queue_length=0)
    with pytest.raises(TranslatorError, match="closed"):
        await SingleFlight[None](max_finishing=1).run(
            "x", "a", worker=lambda: pool.worker("a"), work=anyio.lowlevel.checkpoint, finish=nothing
        )
