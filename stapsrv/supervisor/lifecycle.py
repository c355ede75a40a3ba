"""The life of a hosted server: a pure table from state and event to the next state.

Theory of operation. What is *wanted* of a server (up, down) is kept apart from what *is* (its state).
Commands change what is wanted and, where they can act at once, start an action; facts report how an
action went. A server that should be up and crashes backs off and is launched again; one whose settings
cannot be served has failed, which no retry mends, until somebody starts it again. A command during a
stop only changes what is wanted: when the stop is over, the table looks at that.

The table decides and does nothing: the shell in :mod:`stapsrv.supervisor.managed_server` acts.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from stapsrv.errors import LifecycleError


class Wanted(enum.Enum):
    """The operator's goal for a server."""

    UP = "up"
    DOWN = "down"


class State(enum.Enum):
    """A server's state; the value is the word that ``status`` shows."""

    STOPPED = "stopped"
    STARTING = "starting"
    SERVING = "serving"
    # It finishes what it has and resets new connections; it stays so until told otherwise.
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKING_OFF = "backing-off"  # it crashed and will be launched again after a delay
    FAILED = "failed"  # its settings cannot be served; not retried


class Event(enum.Enum):
    """An event in a server's life: commands of people first, then facts."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    READY = "ready"
    ENDED = "ended"  # by itself, by a crash, or as it was told to
    REFUSED = "refused"
    DELAY_OVER = "delay over"


class Action(enum.Enum):
    """An action for the shell around the table."""

    LAUNCH = enum.auto()  # prepare the server and serve; reports READY, then ENDED or REFUSED
    FINISH = enum.auto()  # stop accepting and let requests finish; ENDED follows
    ABORT = enum.auto()  # end what is under way now: the run, of which ENDED follows, or the delay
    PAUSE_ACCEPT = enum.auto()
    RESUME_ACCEPT = enum.auto()
    DELAY = enum.auto()  # wait for the back-off; DELAY_OVER follows


COMMANDS = frozenset({Event.START, Event.STOP, Event.RESTART, Event.DRAIN, Event.UNDRAIN})


@attrs.frozen
class Transition:
    """The next state, what is wanted from now on (None: as before), and what to do."""

    state: State
    wanted: Wanted | None
    actions: tuple[Action, ...] = ()


# The states of a server that is up or on its way.
RUNNING = frozenset({State.STARTING, State.SERVING, State.DRAINING, State.BACKING_OFF})

# The states in which nothing is under way that a command would wait for.
SETTLED = frozenset({State.SERVING, State.DRAINING, State.STOPPED, State.FAILED, State.BACKING_OFF})

_S, _E, _A, _W = State, Event, Action, Wanted

_TABLE: Mapping[tuple[State, Event], Transition] = {
    # Commands.
    (_S.STOPPED, _E.START): Transition(_S.STARTING, _W.UP, (_A.LAUNCH,)),
    (_S.STOPPED, _E.STOP): Transition(_S.STOPPED, _W.DOWN),
    (_S.STOPPED, _E.RESTART): Transition(_S.STARTING, _W.UP, (_A.LAUNCH,)),
    (_S.STARTING, _E.START): Transition(_S.STARTING, _W.UP),
    (_S.STARTING, _E.STOP): Transition(_S.STOPPING, _W.DOWN, (_A.ABORT,)),
    (_S.STARTING, _E.RESTART): Transition(_S.STOPPING, _W.UP, (_A.ABORT,)),
    (_S.SERVING, _E.START): Transition(_S.SERVING, _W.UP),
    (_S.SERVING, _E.STOP): Transition(_S.STOPPING, _W.DOWN, (_A.FINISH,)),
    (_S.SERVING, _E.RESTART): Transition(_S.STOPPING, _W.UP, (_A.FINISH,)),
    (_S.SERVING, _E.DRAIN): Transition(_S.DRAINING, None, (_A.PAUSE_ACCEPT,)),
    (_S.SERVING, _E.UNDRAIN): Transition(_S.SERVING, None),
    (_S.DRAINING, _E.START): Transition(_S.SERVING, _W.UP, (_A.RESUME_ACCEPT,)),
    (_S.DRAINING, _E.STOP): Transition(_S.STOPPING, _W.DOWN, (_A.FINISH,)),
    (_S.DRAINING, _E.RESTART): Transition(_S.STOPPING, _W.UP, (_A.FINISH,)),
    (_S.DRAINING, _E.DRAIN): Transition(_S.DRAINING, None),
    (_S.DRAINING, _E.UNDRAIN): Transition(_S.SERVING, None, (_A.RESUME_ACCEPT,)),
    (_S.STOPPING, _E.START): Transition(_S.STOPPING, _W.UP),
    (_S.STOPPING, _E.STOP): Transition(_S.STOPPING, _W.DOWN, (_A.ABORT,)),
    (_S.STOPPING, _E.RESTART): Transition(_S.STOPPING, _W.UP),
    (_S.BACKING_OFF, _E.START): Transition(_S.STARTING, _W.UP, (_A.ABORT, _A.LAUNCH)),
    (_S.BACKING_OFF, _E.STOP): Transition(_S.STOPPED, _W.DOWN, (_A.ABORT,)),
    (_S.BACKING_OFF, _E.RESTART): Transition(_S.STARTING, _W.UP, (_A.ABORT, _A.LAUNCH)),
    (_S.FAILED, _E.START): Transition(_S.STARTING, _W.UP, (_A.LAUNCH,)),
    (_S.FAILED, _E.STOP): Transition(_S.STOPPED, _W.DOWN),
    (_S.FAILED, _E.RESTART): Transition(_S.STARTING, _W.UP, (_A.LAUNCH,)),
    # Facts.
    (_S.STARTING, _E.READY): Transition(_S.SERVING, None),
    (_S.STARTING, _E.REFUSED): Transition(_S.FAILED, None),
    # An end that nobody asked for is a crash.
    (_S.STARTING, _E.ENDED): Transition(_S.BACKING_OFF, None, (_A.DELAY,)),
    (_S.SERVING, _E.ENDED): Transition(_S.BACKING_OFF, None, (_A.DELAY,)),
    (_S.DRAINING, _E.ENDED): Transition(_S.BACKING_OFF, None, (_A.DELAY,)),
    # It has been served, so it is worth another try: the launch says if it cannot be any more.
    (_S.SERVING, _E.REFUSED): Transition(_S.BACKING_OFF, None, (_A.DELAY,)),
    (_S.DRAINING, _E.REFUSED): Transition(_S.BACKING_OFF, None, (_A.DELAY,)),
    (_S.BACKING_OFF, _E.DELAY_OVER): Transition(_S.STARTING, None, (_A.LAUNCH,)),
}

# The end of a stop is the one place where what is wanted decides. How it ended is all the same.
_AFTER_STOP: Mapping[Wanted, Transition] = {
    _W.UP: Transition(_S.STARTING, None, (_A.LAUNCH,)),
    _W.DOWN: Transition(_S.STOPPED, None),
}


def transition(wanted: Wanted, state: State, event: Event) -> Transition:
    """Return what ``event`` means for a server; raises LifecycleError for a command that it cannot obey.

    A fact never raises: one that comes too late, after a command in the same turn of the event loop, changes
    nothing.
    """
    if state is State.STOPPING and event in {Event.ENDED, Event.REFUSED}:
        return _AFTER_STOP[wanted]
    found = _TABLE.get((state, event))
    if found is None and event in COMMANDS:
        raise LifecycleError(f"cannot {event.value} a server that is {state.value}")
    return found or Transition(state, None)


FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
# Serving for so long forgives earlier crashes.
HEALTHY_S = 60.0


def back_off_s(crashes: int) -> float:
    """Return the delay in seconds after the ``crashes``-th crash in a row, counted from 1."""
    doublings = min(crashes - 1, 10)
    return float(min(FIRST_DELAY_S * 2**doublings, LONGEST_DELAY_S))
