"""Counters, medians, and that clients cannot make them grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.compile.stats import (
    BOUNDS_S,
    OTHER,
    Histogram,
    LatencyWindow,
    Outcome,
    ProcessCounters,
    RecentTimes,
    RequestRecord,
    Result,
    Source,
)


def record(release: str = "6.1", **facts: object) -> RequestRecord:
    return RequestRecord(request_bytes=10, release=release, **facts)


@pytest.mark.parametrize(
    ("facts", "result"),
    [
        ({"outcome": Outcome.ANSWERED, "rc": 0}, Result.SUCCESS),
        ({"outcome": Outcome.ANSWERED, "rc": 1}, Result.ERROR),
        ({"outcome": Outcome.REFUSED, "rc": 1}, Result.REFUSED),
        ({"outcome": Outcome.ABANDONED, "rc": 0}, Result.ABANDONED),
        ({}, Result.ABANDONED),
    ],
)
def test_results(facts, result):
    tally = ProcessCounters()
    tally.count_request(record(**facts), served=["6.1"])
    assert tally.requests == {("6.1", result): 1}


def test_a_request_counts_in_each_stage_that_it_came_to():
    tally = ProcessCounters()
    tally.count_request(
        record(
            outcome=Outcome.ANSWERED, rc=0, source=Source.COMPILED, queue_s=0.5, compile_s=3, answer_bytes=7
        ),
        served=["6.1"],
    )
    tally.count_request(record(queue_s=1.5), served=["6.1"])
    assert {stage: sum(durations.counts) for stage, durations in tally.stages.items()} == {
        "queue": 2,
        "compile": 1,
        "sign": 0,
        "send": 0,
    }
    assert tally.stages["queue"].total_s == 2.0
    assert tally.sources[Source.COMPILED] == 1
    assert (tally.request_bytes, tally.answer_bytes) == (20, 7)


@given(st.floats(0, 10_000))
def test_a_duration_is_below_its_bound_and_above_the_one_before(seconds):
    durations = Histogram()
    durations.add(seconds)
    place = durations.counts.index(1)
    assert seconds <= (*BOUNDS_S, float("inf"))[place]
    assert place == 0 or seconds > BOUNDS_S[place - 1]


def test_a_result_that_is_not_kept_counts_once():
    tally = ProcessCounters()
    for source in (Source.COMPILED, Source.SHARED, Source.SHARED):
        tally.count_request(record(source=source, uncacheable="code"), served=["6.1"])
    tally.count_request(record(source=Source.COMPILED), served=["6.1"])
    assert tally.uncacheable == {"code": 1}
    assert tally.sources == {Source.COMPILED: 2, Source.SHARED: 2, Source.HIT: 0}


def test_way_of_a_build_counts_for_the_request_that_compiled():
    tally = ProcessCounters()
    for source in (Source.COMPILED, Source.SHARED, Source.HIT):
        tally.count_request(record(source=source, build="prepared"), served=["6.1"])
    tally.count_request(record(source=Source.COMPILED, build="plain: no plan"), served=["6.1"])
    assert tally.builds == {"prepared": 1, "plain: no plan": 1}


def test_releases_that_are_not_served_are_one():
    tally = ProcessCounters()
    for number in range(1000):
        tally.count_request(record(f"{number}"), served=["6.1"])
    tally.count_request(record(""), served=["6.1"])
    assert tally.requests == {(OTHER, Result.ABANDONED): 1001}


def test_releases_that_come_and_go_are_bounded():
    tally = ProcessCounters()
    for number in range(1000):
        tally.expect([f"{number}"])
        tally.count_request(record(f"{number}"), served=[f"{number}"])
    assert len({release for release, _ in tally.requests}) <= 201
    assert sum(tally.requests.values()) == 1000


def test_expected_releases_begin_at_zero_and_keep_their_counts():
    tally = ProcessCounters()
    tally.expect(["6.1"])
    assert tally.requests == {(release, result): 0 for release in ("6.1", OTHER) for result in Result}
    tally.count_request(record(), served=["6.1"])
    tally.expect(["6.1"])
    assert tally.requests["6.1", Result.ABANDONED] == 1


def ended(queue_s: float, compile_s: float, outcome: Outcome = Outcome.ANSWERED) -> RequestRecord:
    return RequestRecord(request_bytes=1, outcome=outcome, queue_s=queue_s, compile_s=compile_s)


def test_medians_are_of_the_requests_that_stap_answered():
    window = LatencyWindow()
    assert window.times() == RecentTimes(0, None, None)
    # The third waited for another request's compile, the last was none of stap's.
    for record in (ended(0, 2), ended(1, 4), ended(5, 0), ended(9, 9, Outcome.REFUSED)):
        window.add(record)
    assert window.times() == RecentTimes(3, 1, 3)


def test_medians_are_of_the_last_hundred_requests():
    window = LatencyWindow()
    for seconds in (*[7] * 500, *[1] * 51, *[2] * 49):
        window.add(ended(0, seconds))
    assert window.times() == RecentTimes(100, 0, 1)
