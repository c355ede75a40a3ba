"""What is to be done next about each advertisement."""

from __future__ import annotations

import attrs
import pytest
from kit.service import LogLines

from stapsrv.mdns.entries import ConflictBackoff, Entry, EntryRegistry, HostState, Step
from stapsrv.mdns.records import Advertisement, Service

WANTED = Advertisement(sysinfo="6.1 x86_64", port=5001, version="4.8", serial="01")
OTHER = attrs.evolve(WANTED, sysinfo="6.2 x86_64")
NAME = "Systemtap Compile Server on build"
ANNOUNCED = Service(name=NAME, host="build", generation=3, advertisement=WANTED)
BEFORE = attrs.evolve(ANNOUNCED, generation=2)
NOW = HostState("build", 3)


def entry(**facts: object) -> Entry:
    return Entry(**{"server_id": 1, "log": LogLines().log, "wanted": WANTED, "name": NAME, **facts})


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        ({}, Step.ANNOUNCE),
        ({"contested": True}, Step.ANNOUNCE),
        ({"announced": ANNOUNCED}, None),
        ({"announced": BEFORE}, Step.UPDATE),
        ({"announced": attrs.evolve(ANNOUNCED, advertisement=attrs.evolve(WANTED, port=1))}, Step.UPDATE),
        (
            {"announced": attrs.evolve(ANNOUNCED, advertisement=OTHER)},
            Step.UPDATE,
        ),
        ({"announced": attrs.evolve(ANNOUNCED, host="build-2")}, Step.UPDATE),
        ({"announced": ANNOUNCED, "contested": True}, Step.VERIFY),
        ({"announced": BEFORE, "contested": True}, Step.VERIFY),
        ({"wanted": None}, Step.REMOVE),
        ({"wanted": None, "contested": True}, Step.REMOVE),
        ({"wanted": None, "announced": ANNOUNCED}, Step.WITHDRAW),
        ({"wanted": None, "announced": BEFORE, "contested": True}, Step.WITHDRAW),
    ],
)
def test_next_step(facts, step):
    assert entry(**facts).next_step(NOW) is step


@pytest.fixture
def registry() -> EntryRegistry:
    made = EntryRegistry("build")
    made.set(1, (WANTED, OTHER), LogLines().log)
    return made


def test_names_are_unique_and_kept(registry):
    first, second = registry
    assert [registry.assign_name(each) for each in (first, second, first)] == [NAME, f"{NAME} #2", NAME]
    registry.set(2, (WANTED,), LogLines().log)
    assert [registry.assign_name(each) for each in registry] == [NAME, f"{NAME} #2", f"{NAME} #3"]
    registry.set(1, (), LogLines().log)
    registry.remove(first)
    registry.set(3, (WANTED,), LogLines().log)
    assert [registry.assign_name(each) for each in registry] == [f"{NAME} #2", f"{NAME} #3", NAME]


def test_taken_names_are_not_tried_twice(registry):
    first, second = registry
    assert registry.assign_name(first) == NAME
    assert registry.rename(first) == f"{NAME} #2"
    assert registry.assign_name(second) == f"{NAME} #3"
    registry.reset()
    assert [registry.assign_name(each) for each in registry] == [NAME, f"{NAME} #2"]


def test_set_replaces_what_is_wanted_of_a_server(registry):
    entries = list(registry)
    changed = attrs.evolve(WANTED, port=6000)
    log = LogLines().log
    registry.set(1, (changed,), log)
    assert list(registry) == entries
    assert [each.wanted for each in registry] == [changed, None]
    assert entries[0].log is log
    registry.withdraw(1)
    assert not registry.has_wanted


def test_reset_removes_entries_that_are_not_wanted(registry):
    first, second = registry
    for each in registry:
        each.announced = attrs.evolve(ANNOUNCED, name=registry.assign_name(each))
    registry.mark_contested([NAME])
    assert [each.contested for each in registry] == [True, False]
    assert registry.is_announced(1)
    assert not registry.is_announced(2)
    second.wanted = None
    registry.reset()
    assert list(registry) == [first]
    assert (first.announced, first.contested, registry.is_announced(1)) == (None, False, False)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_fifteen_conflicts_at_once_start_the_delay(clock):
    backoff = ConflictBackoff(clock)
    for _ in range(14):
        backoff.add_conflict()
    assert backoff.delay_s == 0
    backoff.add_conflict()
    assert backoff.delay_s == 5


def test_fifteen_conflicts_over_more_than_ten_seconds_start_no_delay(clock):
    backoff = ConflictBackoff(clock)
    for _ in range(100):
        backoff.add_conflict()
        clock.now_s += 0.72
        assert backoff.delay_s == 0


def test_delay_lasts_until_a_minute_without_conflict(clock):
    backoff = ConflictBackoff(clock)
    for _ in range(15):
        backoff.add_conflict()
    for _ in range(100):
        clock.now_s += backoff.delay_s
        backoff.add_conflict()
        assert backoff.delay_s == 5
    clock.now_s += 60
    assert backoff.delay_s == 0
    backoff.add_conflict()
    assert backoff.delay_s == 0
