"""How long the last requests of a server took: medians for people, who want to know how it is now. Pure."""

from __future__ import annotations

import statistics
from collections import deque

import attrs

from stapsrv.compile.record import Outcome, RequestRecord

_KEPT = 100


@attrs.frozen
class RecentTimes:
    """What the last requests took that were answered by stap.

    Attributes:
        requests: how many these are, a hundred at most.
        queue_s: the median of their waits for a worker, in seconds; None where there are none.
        compile_s: the median of what stap took, over those that it ran for; None where there are none.
    """

    requests: int = 0
    queue_s: float | None = None
    compile_s: float | None = None


class RecentRequests:
    """The last requests of one server."""

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def note(self, record: RequestRecord) -> None:
        """Take in a request that has ended."""
        if record.outcome is Outcome.ANSWERED:
            self._times.append((record.queue_s, record.compile_s))

    def times(self) -> RecentTimes:
        """Return the medians of now."""
        compiles = [compile_s for _, compile_s in self._times if compile_s > 0]
        return RecentTimes(
            len(self._times),
            statistics.median(queue_s for queue_s, _ in self._times) if self._times else None,
            statistics.median(compiles) if compiles else None,
        )
