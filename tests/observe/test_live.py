"""States and their differences."""

from __future__ import annotations

from hypothesis import given, settings
from kit.live import states

from stapsrv.observe.live import Differences, applied, differences


@settings(max_examples=25, deadline=None)
@given(states(), states())
def test_differences_of_two_states_make_the_second_of_the_first(before, after):
    assert applied(before, differences(before, after)) == after


@settings(max_examples=25, deadline=None)
@given(states())
def test_equal_states_do_not_differ(state):
    assert differences(state, state) == Differences()


@settings(max_examples=25, deadline=None)
@given(states(), states())
def test_differences_have_nothing_that_is_as_before(before, after):
    found = differences(before, after)
    assert all(before.servers.get(key) != server for key, server in found.servers.items())
    assert all(key in before.running and key not in after.running for key in found.gone.get("running", ()))
