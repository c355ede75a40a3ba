"""Lines that come by the thousand."""

from __future__ import annotations

import pytest
from kit.service import LogLines

from stapsrv.compile.rejections import ThrottledLog

pytestmark = pytest.mark.anyio


class Sparing:
    def __init__(self) -> None:
        self.now = 1000.0
        self.lines = LogLines()
        self.log = ThrottledLog(self.lines.log, clock=lambda: self.now)

    def say(self, kind: str, times: int = 1) -> None:
        for _ in range(times):
            self.log.log(kind, lambda: self.lines.log.warning(kind))

    def taken(self) -> list[object]:
        """Return what was logged since the last time: an event, or how many of a kind were not."""
        found = [
            (entry["kind"], entry["suppressed"], entry["seconds"])
            if entry["event"] == "log.suppressed"
            else entry["event"]
            for entry in self.lines.entries
        ]
        self.lines.entries.clear()
        return found


async def test_the_first_of_each_kind_passes_at_once():
    sparing = Sparing()
    sparing.say("reset", 1000)
    sparing.say("late")
    assert sparing.taken() == ["reset", "late"]


async def test_after_a_minute_the_next_one_tells_how_many_there_were():
    sparing = Sparing()
    sparing.say("reset", 1000)
    sparing.now += 59
    sparing.say("reset")
    assert sparing.taken() == ["reset"]
    sparing.now += 1
    sparing.say("reset", 2)
    assert sparing.taken() == [("reset", 1000, 60), "reset"]


async def test_those_that_are_quiet_again_are_told_of_too():
    sparing = Sparing()
    sparing.say("reset", 3)
    sparing.say("late")
    sparing.log.log_suppressed()
    assert sparing.taken() == ["reset", "late"]
    sparing.now += 61
    sparing.log.log_suppressed()
    sparing.log.log_suppressed(at_once=True)
    assert sparing.taken() == [("reset", 2, 61)]


async def test_at_the_end_nothing_is_kept_back():
    sparing = Sparing()
    sparing.say("reset", 3)
    sparing.log.log_suppressed(at_once=True)
    assert sparing.taken() == ["reset", ("reset", 2, 0)]
