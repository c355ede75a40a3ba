"""The last day of a process, minute by minute: requests, hits, queue and compile times, in bounded memory.

It is fed by what the process counts anyway: a look a minute, and one more whenever somebody looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import anyio
import attrs

from stapsrv.compile.activity import INTERVAL_S, Activity
from stapsrv.compile.stats import ProcessCounters, Source

MINUTE_S = 60
MINUTES = 1440


@attrs.frozen(kw_only=True)
class Minute:
    """The requests of a minute, or of several together."""

    requests: int = 0  # that ended
    answers: int = 0  # of stap's
    hits: int = 0  # answers from the cache
    queued: int = 0  # the most that waited for a worker at the same time
    compiles: int = 0
    compile_s: float = 0.0  # of all of these

    def __add__(self, other: Minute) -> Minute:
        return Minute(
            requests=self.requests + other.requests,
            answers=self.answers + other.answers,
            hits=self.hits + other.hits,
            queued=max(self.queued, other.queued),
            compiles=self.compiles + other.compiles,
            compile_s=self.compile_s + other.compile_s,
        )

    @property
    def hit_percent(self) -> float | None:
        """The share of answers that came from the cache, in percent."""
        return 100 * self.hits / self.answers if self.answers else None

    @property
    def mean_compile_s(self) -> float | None:
        """The mean time of a compile, in seconds."""
        return self.compile_s / self.compiles if self.compiles else None


class DayRecord:
    """The last day, as far as this process has seen it; all of it is called on the event loop."""

    def __init__(
        self, counters: ProcessCounters, activity: Activity, *, now: Callable[[], float] = time.time
    ) -> None:
        self._counters = counters
        self._activity = activity
        self._now = now
        # Those in which something happened, by the Unix time when they began.
        self._minutes: dict[int, Minute] = {}
        self._counted = self._totals()

    async def keep(self) -> NoReturn:
        """Look once a minute, until cancelled."""
        while True:
            await anyio.sleep(MINUTE_S - self._now() % MINUTE_S)
            # What is seen at the turn of a minute happened before it.
            self._look(int(self._now()) - 1)

    def minutes(self) -> Mapping[int, Minute]:
        """Return the minutes in which something happened, by the Unix time when they began, in order."""
        self._look(int(self._now()))
        return dict(self._minutes)

    def _look(self, moment: int) -> None:
        totals, before = self._totals(), self._counted
        self._counted = totals
        begin = moment // MINUTE_S * MINUTE_S
        happened = Minute(
            requests=totals.requests - before.requests,
            answers=totals.answers - before.answers,
            hits=totals.hits - before.hits,
            compiles=totals.compiles - before.compiles,
            compile_s=totals.compile_s - before.compile_s,
            queued=self._longest_queue(begin),
        )
        if happened != Minute():
            self._minutes[begin] = self._minutes.get(begin, Minute()) + happened
        for passed in [each for each in self._minutes if each <= begin - MINUTES * MINUTE_S or each > begin]:
            # Too long ago; or in the future, after the clock was set back.
            del self._minutes[passed]

    def _longest_queue(self, begin: int) -> int:
        within = range(begin, begin + MINUTE_S, INTERVAL_S)
        intervals = self._activity.intervals()
        return max((intervals[each].queued for each in within if each in intervals), default=0)

    def _totals(self) -> Minute:
        counters = self._counters
        compiles = counters.stages["compile"]
        return Minute(
            requests=sum(counters.requests.values()),
            answers=sum(counters.sources.values()),
            hits=counters.sources[Source.HIT],
            compiles=sum(compiles.counts),
            compile_s=compiles.total_s,
        )
