"""The requests of a process: each is under way, then among the last, and counted in its interval."""

from __future__ import annotations

from stapsrv.compile.activity import INTERVAL_S, INTERVALS, LAST_REQUESTS, Activity, Interval
from stapsrv.compile.stats import Outcome, RequestRecord, Source, Stage


class Clock:
    now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def answered(**facts: object) -> RequestRecord:
    return RequestRecord(outcome=Outcome.ANSWERED, rc=0, **facts)


def test_request_is_under_way_in_its_stage_then_among_the_last():
    activity, record = Activity(now=Clock()), RequestRecord(request_bytes=9)
    with activity.follow(record, server=7, client="192.0.2.1:42"):
        (running,) = activity.running().values()
        assert (running.stage, running.release, running.digest) == (Stage.READ, None, None)
        record.release, record.digest = "6.1.0-test", "abc"
        seen = activity.changes.count
        record.enter(Stage.COMPILE)
        assert activity.changes.count == seen + 1
        (running,) = activity.running().values()
        assert (running.stage, running.release, running.digest) == (Stage.COMPILE, "6.1.0-test", "abc")
        assert activity.last() == {}
        record.outcome, record.rc, record.compile_s = Outcome.ANSWERED, 1, 2.5
    assert activity.running() == {}
    ((number, ended),) = activity.last().items()
    assert (number, ended.server, ended.client, ended.outcome) == (1, 7, "192.0.2.1:42", Outcome.ANSWERED)
    assert (ended.rc, ended.compile_s, ended.request_bytes) == (1, 2.5, 9)


def test_requests_of_an_interval_are_counted_with_hits_and_the_longest_queue():
    clock = Clock()
    activity, first, second = Activity(now=clock), answered(source=Source.HIT), answered()
    with activity.follow(first, server=1, client=""), activity.follow(second, server=1, client=""):
        first.enter(Stage.QUEUE)
        second.enter(Stage.QUEUE)
        first.enter(Stage.COMPILE)
    clock.now += INTERVAL_S
    with activity.follow(answered(), server=1, client=""):
        pass
    assert list(activity.intervals().values()) == [Interval(2, 1, 1), Interval(1, 0, 0)]


def test_memory_is_bounded_however_many_requests_there_are():
    clock = Clock()
    activity = Activity(now=clock)
    for _ in range(LAST_REQUESTS + 50):
        clock.now += INTERVAL_S
        with activity.follow(answered(), server=1, client=""):
            pass
    assert (len(activity.last()), len(activity.intervals())) == (LAST_REQUESTS, INTERVALS)
    assert max(activity.last()) == LAST_REQUESTS + 50
