"""The last day, by minutes: what is counted, and that it stays bounded."""

from __future__ import annotations

import pytest

from stapsrv.compile.activity import Activity
from stapsrv.compile.stats import Outcome, ProcessCounters, RequestRecord, Source, Stage
from stapsrv.observe.web.day import MINUTES, DayRecord, Minute

BEGIN = 1_800_000_000 // 60 * 60


class Clock:
    def __init__(self) -> None:
        self.now = BEGIN + 5.0

    def __call__(self) -> float:
        return self.now


class Process:
    """Requests that end when a test says so, and the record of their day."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.counters = ProcessCounters()
        self.activity = Activity(now=self.clock)
        self.day = DayRecord(self.counters, self.activity, now=self.clock)

    def request(self, source: Source = Source.COMPILED, compile_s: float = 0.0) -> None:
        record = RequestRecord(outcome=Outcome.ANSWERED, rc=0, source=source, compile_s=compile_s)
        self.counters.count_request(record, served=())


@pytest.fixture
def process() -> Process:
    return Process()


def test_requests_are_in_the_minute_in_which_they_are_seen(process):
    process.request(compile_s=1.0)
    process.request(Source.HIT)
    assert process.day.minutes() == {BEGIN: Minute(requests=2, answers=2, hits=1, compiles=1, compile_s=1.0)}
    process.request(compile_s=3.0)
    (minute,) = process.day.minutes().values()
    assert (minute.requests, minute.hit_percent, minute.mean_compile_s) == (
        3,
        pytest.approx(33.3, abs=0.1),
        2.0,
    )
    process.clock.now += 120
    process.request()
    assert list(process.day.minutes()) == [BEGIN, BEGIN + 120]


def test_what_was_before_the_record_is_not_in_it(process):
    process.request()
    assert DayRecord(process.counters, process.activity, now=process.clock).minutes() == {}


def test_longest_queue_of_the_minute_is_kept(process):
    waiting = [RequestRecord() for _ in range(3)]
    followed = [process.activity.follow(record, server=1, client="c") for record in waiting]
    for each, record in zip(followed, waiting, strict=True):
        each.__enter__()
        record.enter(Stage.QUEUE)
    for record in waiting:
        record.enter(Stage.COMPILE)
    assert process.day.minutes()[BEGIN].queued >= 2
    for each in followed:
        each.__exit__(None, None, None)


def test_record_is_bounded_and_forgets_what_is_a_day_ago(process):
    for _ in range(MINUTES + 500):
        process.request()
        process.clock.now += 60
        process.day._look(int(process.clock.now) - 6)
    minutes = process.day.minutes()
    assert len(minutes) <= MINUTES
    assert min(minutes) > process.clock.now - (MINUTES + 1) * 60


def test_idle_minutes_take_no_memory_and_a_clock_set_back_loses_only_the_future(process):
    for _ in range(100):
        process.clock.now += 60
        process.day._look(int(process.clock.now))
    assert process.day.minutes() == {}
    process.request()
    process.day.minutes()
    process.clock.now -= 3600
    process.request()
    assert list(process.day.minutes()) == [BEGIN + 100 * 60 - 3600]


@pytest.mark.anyio
async def test_minute_is_seen_at_its_end(process, monkeypatch):
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        process.clock.now += seconds
        process.request()
        if len(slept) == 3:
            raise ZeroDivisionError

    monkeypatch.setattr("anyio.sleep", sleep)
    with pytest.raises(ZeroDivisionError):
        await process.day.keep()
    assert slept == [55.0, 60.0, 60.0]
    assert list(process.day._minutes) == [BEGIN, BEGIN + 60]
