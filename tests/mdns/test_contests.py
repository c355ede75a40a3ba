"""Names that turn out to be taken, one after the other."""

from __future__ import annotations

import pytest

from stapsrv.mdns.entries import ConflictBackoff


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_fifteen_at_once_ask_for_a_pause(clock):
    contests = ConflictBackoff(clock)
    for _ in range(14):
        contests.note()
    assert contests.pause_s == 0
    contests.note()
    assert contests.pause_s == 5


def test_fifteen_in_a_while_are_nothing_special(clock):
    contests = ConflictBackoff(clock)
    for _ in range(100):
        contests.note()
        clock.now_s += 0.72
        assert contests.pause_s == 0


def test_pauses_go_on_for_as_long_as_it_goes_on(clock):
    contests = ConflictBackoff(clock)
    for _ in range(15):
        contests.note()
    for _ in range(100):
        clock.now_s += contests.pause_s
        contests.note()
        assert contests.pause_s == 5
    clock.now_s += 60
    assert contests.pause_s == 0
    contests.note()
    assert contests.pause_s == 0
