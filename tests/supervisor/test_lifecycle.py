"""The life of a server as a table: every pair of state and event has a row or a named refusal."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.errors import LifecycleError
from stapsrv.supervisor.lifecycle import (
    RUNNING,
    SETTLED,
    Action,
    Event,
    State,
    Transition,
    Wanted,
    back_off_s,
    transition,
)

REFUSED = {
    # A drain needs a server that serves.
    **{
        (state, event): f"cannot {event.value} a server that is {state.value}"
        for state in (State.STOPPED, State.STARTING, State.STOPPING, State.BACKING_OFF, State.FAILED)
        for event in (Event.DRAIN, Event.UNDRAIN)
    },
    # Nothing runs that could report these.
    **{
        (state, event): f"'{event.value}' was reported of a server that is {state.value}"
        for state, event in [
            *itertools.product(
                (State.STOPPED, State.FAILED, State.BACKING_OFF),
                (Event.READY, Event.ENDED, Event.CRASHED, Event.REFUSED),
            ),
            *itertools.product((State.SERVING, State.DRAINING), (Event.READY, Event.ENDED, Event.REFUSED)),
            *((state, Event.DELAY_OVER) for state in State if state is not State.BACKING_OFF),
            (State.STARTING, Event.ENDED),
        ]
    },
}


@pytest.mark.parametrize(("wanted", "state", "event"), list(itertools.product(Wanted, State, Event)))
def test_every_pair_has_a_row_or_a_named_refusal(wanted, state, event):
    if (state, event) in REFUSED:
        with pytest.raises(LifecycleError) as caught:
            transition(wanted, state, event)
        assert str(caught.value) == REFUSED[state, event]
    else:
        assert isinstance(transition(wanted, state, event), Transition)


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [
        (State.STOPPED, Event.START, Transition(State.STARTING, Wanted.UP, (Action.LAUNCH,))),
        (State.STARTING, Event.READY, Transition(State.SERVING, None)),
        (State.STARTING, Event.REFUSED, Transition(State.FAILED, None)),
        (State.SERVING, Event.STOP, Transition(State.STOPPING, Wanted.DOWN, (Action.FINISH,))),
        (State.SERVING, Event.CRASHED, Transition(State.BACKING_OFF, None, (Action.DELAY,))),
        (State.SERVING, Event.START, Transition(State.SERVING, Wanted.UP)),
        (State.STOPPING, Event.STOP, Transition(State.STOPPING, Wanted.DOWN, (Action.ABORT,))),
        (State.DRAINING, Event.UNDRAIN, Transition(State.SERVING, None, (Action.RESUME_ACCEPT,))),
    ],
)
def test_rows_that_people_know(state, event, expected):
    assert transition(Wanted.UP, state, event) == expected


@pytest.mark.parametrize("end", [Event.ENDED, Event.CRASHED, Event.REFUSED])
def test_what_is_wanted_decides_after_a_stop(end):
    assert transition(Wanted.DOWN, State.STOPPING, end) == Transition(State.STOPPED, None)
    relaunch = Transition(State.STARTING, None, (Action.LAUNCH,))
    assert transition(Wanted.UP, State.STOPPING, end) == relaunch


@given(st.lists(st.sampled_from(Event)))
def test_launches_and_ends_alternate(events):
    """Whatever comes, a server is never launched while an earlier launch has not reported its end."""
    state, wanted, launched = State.STOPPED, Wanted.DOWN, False
    for event in events:
        if event in {Event.ENDED, Event.CRASHED, Event.REFUSED, Event.READY} and not launched:
            continue
        try:
            step = transition(wanted, state, event)
        except LifecycleError:
            continue
        launched = launched and event not in {Event.ENDED, Event.CRASHED, Event.REFUSED}
        state, wanted = step.state, step.wanted or wanted
        if Action.LAUNCH in step.actions:
            assert not launched
            launched = True
        assert launched == (state in {State.STARTING, State.SERVING, State.DRAINING, State.STOPPING})


def test_settled_states():
    assert State.STOPPING not in SETTLED
    assert State.STARTING not in SETTLED
    assert State.FAILED not in RUNNING


def test_back_off_doubles_up_to_a_minute():
    assert [back_off_s(crashes) for crashes in (1, 2, 3, 6, 7, 8, 1000)] == [1, 2, 4, 32, 60, 60, 60]
