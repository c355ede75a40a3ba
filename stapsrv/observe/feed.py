"""Updates of a process's live state: a snapshot first, then differences, at each reader's pace.

Nothing is kept for a reader but the last state that he was given, which equal readers share: who reads slowly
is given fewer and larger differences, and holds up nobody. While nobody reads, nothing is done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import TypeAlias

import anyio
import attrs

from stapsrv.compile.activity import Activity
from stapsrv.observe.live import TABLES, Differences, LiveState, differences
from stapsrv.supervisor.status import SupervisorStatus

# Between two updates for one reader: fast enough for an eye.
LEAST_S = 0.25
# Without a change. Then what changes without a note, such as a farm, is read anew; and by it the reader and
# the process know that the other is still there.
HEARTBEAT_S = 15.0
# Looking takes at most this part of the event loop's time, for each reader.
_SHARE = 0.05


@attrs.frozen
class Update:
    """News at a moment: a whole state, or what differs from the one that was given before."""

    at: datetime
    news: LiveState | Differences


Updates: TypeAlias = AsyncGenerator[Update, None]


class LiveFeed:
    """The live state of one process and its changes; all of it is called on the event loop."""

    def __init__(self, status: Callable[[], SupervisorStatus], activity: Activity) -> None:
        self._status = status
        self._activity = activity
        self._seen = -1
        self._state: LiveState | None = None

    def state(self) -> LiveState:
        """Return the state of now."""
        status = self._status()
        return LiveState(
            supervisor=attrs.evolve(status, servers=()),
            servers={server.id: server for server in status.servers},
            running=self._activity.running(),
            recent=self._activity.last(),
            history=self._activity.intervals(),
        )

    async def updates(self, *, least_s: float = LEAST_S, heartbeat_s: float = HEARTBEAT_S) -> Updates:
        """Yield the state of now, then what differs whenever something does, without end.

        Two updates are at least ``least_s`` seconds apart, and at most ``heartbeat_s``. Where differences
        would be as much as all there is, the whole state takes their place.

        Cancellation: close it, with :func:`contextlib.aclosing`.
        """
        changes = self._activity.changes
        given: LiveState | None = None
        while True:
            began, seen = anyio.current_time(), changes.count
            state = self.current()
            update = Update(datetime.now(UTC), _news(given, state))
            given = state
            taken_s = anyio.current_time() - began
            yield update
            next_s = began + max(least_s, min(taken_s / _SHARE, heartbeat_s))
            with anyio.CancelScope(deadline=began + heartbeat_s):
                await changes.wait_beyond(seen)
            if changes.count == seen:
                self._seen = -1
            await anyio.sleep_until(next_s)

    def current(self) -> LiveState:
        """Return the state of now, which all who look between two changes share."""
        count = self._activity.changes.count
        if self._state is None or self._seen != count:
            self._state, self._seen = self.state(), count
        return self._state


def _news(given: LiveState | None, state: LiveState) -> LiveState | Differences:
    if given is None:
        return state
    found = differences(given, state)
    whole = sum(len(getattr(state, table)) for table in TABLES)
    return state if found.entries > whole else found
