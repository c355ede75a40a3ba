"""Rejections that come by the thousand: all are counted, few are logged."""

from __future__ import annotations

from collections import Counter

import pytest
from kit.service import LogLines

from stapsrv.compile.rejections import Rejections
from stapsrv.rejection import RejectReason

DENIED, DRAINING = RejectReason.DENIED, RejectReason.DRAINING


class Counted:
    """Rejections with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines = LogLines()
        self.total: Counter[RejectReason] = Counter()
        self.rejections = Rejections(self.lines.log, self.total, clock=lambda: self.now)

    def count(self, reason: RejectReason | None, times: int = 1) -> None:
        for _ in range(times):
            self.rejections.count(reason, lambda: self.lines.log.warning(reason or "fault"))

    def taken(self) -> list[object]:
        """Return what was logged since the last time: an event, or how many of a reason were not."""
        found = [
            (entry["kind"], entry["suppressed"], entry["seconds"])
            if entry["event"] == "log.suppressed"
            else entry["event"]
            for entry in self.lines.entries
        ]
        self.lines.entries.clear()
        return found


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_first_of_each_reason_is_logged_and_all_are_counted(counted):
    counted.count(DENIED, 1000)
    counted.count(DRAINING)
    assert counted.taken() == ["denied", "draining"]
    assert counted.rejections.counts[DENIED] == counted.total[DENIED] == 1000
    assert counted.rejections.counts[RejectReason.SEND_TIMEOUT] == 0


def test_fault_without_a_reason_is_always_logged_and_not_counted(counted):
    counted.count(None, 3)
    assert counted.taken() == ["fault"] * 3
    assert counted.total.total() == 0


def test_next_one_after_a_minute_comes_with_the_number_of_suppressed_ones(counted):
    counted.count(DENIED, 1000)
    counted.now += 59
    counted.count(DENIED)
    assert counted.taken() == ["denied"]
    counted.now += 1
    counted.count(DENIED, 2)
    assert counted.taken() == [("denied", 1000, 60), "denied"]


def test_number_is_logged_once_after_a_minute_without_further_ones(counted):
    counted.count(DENIED, 3)
    counted.count(DRAINING)
    counted.rejections.log_due()
    assert counted.taken() == ["denied", "draining"]
    counted.now += 61
    counted.rejections.log_due()
    counted.rejections.log_due(at_once=True)
    assert counted.taken() == [("denied", 2, 61)]


def test_number_is_logged_at_the_end(counted):
    counted.count(DENIED, 3)
    counted.rejections.log_due(at_once=True)
    assert counted.taken() == ["denied", ("denied", 2, 0)]
