"""The life of a server as a table: every event means something in every state."""

from __future__ import annotations

import itertools

import attrs
import pytest

from stapsrv.errors import LifecycleError
from stapsrv.supervisor.lifecycle import (
    COMMANDS,
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

ENDS = frozenset({Event.ENDED, Event.REFUSED})
# In these a launch is under way, and its end will be reported.
LAUNCHED = frozenset({State.STARTING, State.SERVING, State.DRAINING, State.STOPPING})
# A drain needs a server that serves.
UNDRAINABLE = frozenset(State) - {State.SERVING, State.DRAINING}


@pytest.mark.parametrize(("wanted", "state", "event"), list(itertools.product(Wanted, State, Event)))
def test_every_pair_means_something_but_the_drain_of_what_does_not_serve(wanted, state, event):
    if state in UNDRAINABLE and event in {Event.DRAIN, Event.UNDRAIN}:
        with pytest.raises(LifecycleError) as caught:
            transition(wanted, state, event)
        assert str(caught.value) == f"cannot {event.value} a server that is {state.value}"
    else:
        assert isinstance(transition(wanted, state, event), Transition)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_a_fact_of_what_is_over_changes_nothing(state, event):
    launched = {Event.READY: state in LAUNCHED, Event.DELAY_OVER: state is State.BACKING_OFF}
    possible = launched.get(event, event in COMMANDS or state in LAUNCHED)
    if not possible:
        assert transition(Wanted.UP, state, event) == Transition(state, None)


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [
        (State.STOPPED, Event.START, Transition(State.STARTING, Wanted.UP, (Action.LAUNCH,))),
        (State.STARTING, Event.READY, Transition(State.SERVING, None)),
        (State.STARTING, Event.REFUSED, Transition(State.FAILED, None)),
        (State.SERVING, Event.STOP, Transition(State.STOPPING, Wanted.DOWN, (Action.FINISH,))),
        (State.SERVING, Event.ENDED, Transition(State.BACKING_OFF, None, (Action.DELAY,))),
        (State.SERVING, Event.START, Transition(State.SERVING, Wanted.UP)),
        (State.STOPPING, Event.STOP, Transition(State.STOPPING, Wanted.DOWN, (Action.ABORT,))),
        (State.DRAINING, Event.UNDRAIN, Transition(State.SERVING, None, (Action.RESUME_ACCEPT,))),
    ],
)
def test_rows_that_people_know(state, event, expected):
    assert transition(Wanted.UP, state, event) == expected


@pytest.mark.parametrize("end", [Event.ENDED, Event.REFUSED])
def test_what_is_wanted_decides_after_a_stop(end):
    assert transition(Wanted.DOWN, State.STOPPING, end) == Transition(State.STOPPED, None)
    relaunch = Transition(State.STARTING, None, (Action.LAUNCH,))
    assert transition(Wanted.UP, State.STOPPING, end) == relaunch


@attrs.frozen
class Life:
    """A server as the table leaves it: what is, and what the shell has under way."""

    wanted: Wanted = Wanted.DOWN
    state: State = State.STOPPED
    launched: bool = False
    delayed: bool = False

    def after(self, event: Event) -> Life:
        """Return the next life, and check that the actions fit what is under way."""
        try:
            step = transition(self.wanted, self.state, event)
        except LifecycleError:
            assert event in {Event.DRAIN, Event.UNDRAIN}, f"{event} in {self}"
            return self
        launched, delayed = (
            self.launched and event not in ENDS,
            self.delayed and event is not Event.DELAY_OVER,
        )
        for action in step.actions:
            match action:
                case Action.LAUNCH:
                    assert not launched, f"{event} in {self}: a second launch"
                    launched = True
                case Action.DELAY:
                    assert not delayed, f"{event} in {self}: a second delay"
                    delayed = True
                case Action.ABORT:
                    assert launched or delayed, f"{event} in {self}: {action} of nothing"
                    delayed = False
                case _:
                    assert launched, f"{event} in {self}: {action} of nothing"
        life = Life(step.wanted or self.wanted, step.state, launched, delayed)
        assert launched == (life.state in LAUNCHED), f"{event} in {self}"
        assert delayed == (life.state is State.BACKING_OFF), f"{event} in {self}"
        return life


def test_every_sequence_of_events_launches_and_ends_in_turn():
    """Whatever comes, no fact is refused, and nothing is launched or awaited twice."""
    lives, met = {Life()}, set()
    for _ in range(6):
        met |= lives
        lives = {
            life.after(event)
            for life, event in itertools.product(lives, Event)
            # The end of a launch is reported once; a delay that was cancelled may be reported still.
            if life.launched or event not in ENDS
        }
    assert {life.state for life in met} == set(State)
    assert lives <= met, "six events reach every life"


def test_settled_states():
    assert State.STOPPING not in SETTLED
    assert State.STARTING not in SETTLED
    assert State.FAILED not in RUNNING


def test_back_off_doubles_up_to_a_minute():
    assert [back_off_s(crashes) for crashes in (1, 2, 3, 6, 7, 8, 1000)] == [1, 2, 4, 32, 60, 60, 60]
