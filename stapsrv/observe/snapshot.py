"""A snapshot of a process, for metrics and health."""

from __future__ import annotations

import contextlib
import copy
import enum
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

import anyio
import attrs

from stapsrv.compile.stats import Histogram, ProcessCounters
from stapsrv.supervisor.status import SupervisorStatus

_TASKS = Path("/proc/self/task")


def own_children() -> frozenset[int] | None:
    """Return the process ids of this process's children; None where the kernel does not list them."""
    children: set[int] = set()
    lists = list(_TASKS.glob("*/children"))
    for each in lists:
        # Of a thread that has just ended there are none.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children.update(map(int, each.read_text().split()))
    return frozenset(children) if lists else None


# Between looks at the event loop's lateness: an idle process must stay idle.
LAG_INTERVAL_S = 5.0


class Phase(enum.StrEnum):
    """The phase of a process."""

    # Not all that is configured has been started yet.
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@attrs.frozen(kw_only=True)
class Snapshot:
    """The state of this process at one moment; ``lag`` is that of the event loop."""

    phase: Phase
    status: SupervisorStatus
    counters: ProcessCounters
    dropped_entries: int = 0
    lag: Histogram = attrs.field(factory=Histogram)
    # Process ids; None where the kernel does not list them.
    children: frozenset[int] | None = None

    def frozen(self) -> Snapshot:
        """Return a copy that stays as it is: it is rendered in a thread while the event loop goes on."""
        own = copy.deepcopy((self.counters, self.lag))
        return attrs.evolve(self, counters=own[0], lag=own[1])


# Looks at the process; called on the event loop.
TakeSnapshot: TypeAlias = Callable[[], Snapshot]


async def sample_lag(lag: Histogram, *, interval_s: float = LAG_INTERVAL_S) -> NoReturn:
    """Add how late the event loop is to ``lag``, every so often, until cancelled."""
    while True:
        due = anyio.current_time() + interval_s
        await anyio.sleep_until(due)
        lag.add(max(0.0, anyio.current_time() - due))
