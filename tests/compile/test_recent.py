"""Medians of what the last requests took."""

from __future__ import annotations

from stapsrv.compile.stats import LatencyWindow, Outcome, RecentTimes, RequestRecord


def ended(queue_s: float, compile_s: float, outcome: Outcome = Outcome.ANSWERED) -> RequestRecord:
    return RequestRecord(peer="p", request_bytes=1, outcome=outcome, queue_s=queue_s, compile_s=compile_s)


def test_medians_of_those_that_stap_answered():
    recent = LatencyWindow()
    assert recent.times() == RecentTimes(0, None, None)
    # The third waited for another request's compile, the last was none of stap's.
    for record in (ended(0, 2), ended(1, 4), ended(5, 0), ended(9, 9, Outcome.REFUSED)):
        recent.add(record)
    assert recent.times() == RecentTimes(3, 1, 3)


def test_only_the_last_hundred_count():
    recent = LatencyWindow()
    for seconds in (*[7] * 500, *[1] * 51, *[2] * 49):
        recent.add(ended(0, seconds))
    assert recent.times() == RecentTimes(100, 0, 1)
