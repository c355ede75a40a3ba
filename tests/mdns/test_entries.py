"""What is to be done next about each advertisement."""

from __future__ import annotations

import attrs
import pytest
from kit.service import LogLines

from stapsrv.mdns.entries import Entry, EntryRegistry, Step, Surroundings
from stapsrv.mdns.records import Advertisement, Service

WANTED = Advertisement(sysinfo="6.1 x86_64", port=5001, version="4.8", serial="01")
OTHER = attrs.evolve(WANTED, sysinfo="6.2 x86_64")
NAME = "Systemtap Compile Server on build"
SAID = Service(name=NAME, host="build", port=5001, text=WANTED.text)
NOW = Surroundings("build", 3)


def entry(**facts: object) -> Entry:
    return Entry(**{"server_id": 1, "log": LogLines().log, "wanted": WANTED, "name": NAME, **facts})


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        ({}, Step.ANNOUNCE),
        ({"contested": True}, Step.ANNOUNCE),
        ({"said": SAID, "said_at": 3}, None),
        ({"said": SAID, "said_at": 2}, Step.UPDATE),
        ({"said": attrs.evolve(SAID, port=1), "said_at": 3}, Step.UPDATE),
        ({"said": attrs.evolve(SAID, text=b""), "said_at": 3}, Step.UPDATE),
        ({"said": attrs.evolve(SAID, host="build-2"), "said_at": 3}, Step.UPDATE),
        ({"said": SAID, "said_at": 3, "contested": True}, Step.VERIFY),
        ({"said": SAID, "said_at": 2, "contested": True}, Step.VERIFY),
        ({"wanted": None}, Step.FORGET),
        ({"wanted": None, "contested": True}, Step.FORGET),
        ({"wanted": None, "said": SAID, "said_at": 3}, Step.WITHDRAW),
        ({"wanted": None, "said": SAID, "said_at": 2, "contested": True}, Step.WITHDRAW),
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
    assert [registry.name(each) for each in (first, second, first)] == [NAME, f"{NAME} #2", NAME]
    registry.set(2, (WANTED,), LogLines().log)
    assert [registry.name(each) for each in registry] == [NAME, f"{NAME} #2", f"{NAME} #3"]
    registry.set(1, (), LogLines().log)
    registry.forget(first)
    registry.set(3, (WANTED,), LogLines().log)
    assert [registry.name(each) for each in registry] == [f"{NAME} #2", f"{NAME} #3", NAME]


def test_names_of_others_are_not_tried_twice(registry):
    first, second = registry
    assert registry.name(first) == NAME
    assert registry.rename(first) == f"{NAME} #2"
    assert registry.name(second) == f"{NAME} #3"
    registry.lose_all()
    assert [registry.name(each) for each in registry] == [NAME, f"{NAME} #2"]


def test_wanting_again_changes_what_is_wanted(registry):
    entries = list(registry)
    changed = attrs.evolve(WANTED, port=6000)
    log = LogLines().log
    registry.set(1, (changed,), log)
    assert list(registry) == entries
    assert [each.wanted for each in registry] == [changed, None]
    assert entries[0].log is log
    registry.withdraw(1)
    assert not registry.is_wanted


def test_losing_all_forgets_what_is_not_wanted(registry):
    first, second = registry
    for each in registry:
        each.said = attrs.evolve(SAID, name=registry.name(each))
    registry.contest([NAME])
    assert [each.contested for each in registry] == [True, False]
    assert registry.is_announced(1)
    assert not registry.is_announced(2)
    second.wanted = None
    registry.lose_all()
    assert list(registry) == [first]
    assert (first.said, first.contested, registry.is_announced(1)) == (None, False, False)
