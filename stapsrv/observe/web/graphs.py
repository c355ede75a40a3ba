"""Graphs of the last day, as points in a picture, and the same as a table by hours. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import attrs

from stapsrv.observe.web.day import MINUTE_S, MINUTES, Minute

WIDTH, HEIGHT = 576, 120
_DAY_S = MINUTES * MINUTE_S
_STEP_S = 600  # ten minutes to a point: four units wide
_HOUR_S = 3600
_LABELLED_HOURS = 6
_SECONDS_AT_LEAST = 0.1


@attrs.frozen(kw_only=True)
class Graph:
    """One curve over the last day: bars from below, from x to x + width, in units of the picture."""

    id: str
    title: str
    unit: str
    description: str  # what it shows, for who does not see it
    top: float  # the value at the upper edge
    bars: tuple[tuple[float, float, float, float], ...]  # x, y, width, height
    labels: tuple[tuple[float, str], ...]  # x, and the time there


@attrs.frozen(kw_only=True)
class Hour:
    """One row of the table."""

    begin: datetime
    total: Minute


def graphs_of(minutes: Mapping[int, Minute], now: float) -> tuple[Graph, ...]:
    """Return the graphs of the day that ends at the Unix time ``now``."""
    draw = _Drawing(minutes, now)
    return (
        draw.graph("requests", "Requests", "in ten minutes", lambda each: float(each.requests), least=10),
        draw.graph("hits", "Hit rate", "percent", lambda each: each.hit_percent, least=100),
        draw.graph("queue", "Longest queue", "requests", lambda each: float(each.queued), least=4),
        draw.graph(
            "compile",
            "Compile time",
            "seconds, mean",
            lambda each: each.mean_compile_s,
            least=_SECONDS_AT_LEAST,
        ),
    )


def hours_of(minutes: Mapping[int, Minute]) -> tuple[Hour, ...]:
    """Return the hours in which something happened, the last first."""
    return tuple(
        Hour(begin=datetime.fromtimestamp(begin, UTC), total=total)
        for begin, total in sorted(_totals(minutes, _HOUR_S).items(), reverse=True)
    )


def rounded_up(value: float) -> float:
    """Return the next number from ``value`` on that reads well: 1, 2 or 5 with zeros."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


class _Drawing:
    def __init__(self, minutes: Mapping[int, Minute], now: float) -> None:
        self._end = (int(now) // _STEP_S + 1) * _STEP_S
        self._begin = self._end - _DAY_S
        self._steps = _totals(minutes, _STEP_S)
        self._labels = self._times()

    def graph(
        self, name: str, title: str, unit: str, value: Callable[[Minute], float | None], *, least: float
    ) -> Graph:
        values = {
            begin: found
            for begin, total in self._steps.items()
            if self._begin <= begin < self._end and (found := value(total)) is not None
        }
        top = rounded_up(max([least, *values.values()]))
        bars = [self._bar(begin, found / top) for begin, found in values.items() if found > 0]
        return Graph(
            id=name,
            title=title,
            unit=unit,
            description=_described([values[begin] for begin in sorted(values)], unit),
            top=top,
            bars=tuple(bars),
            labels=self._labels,
        )

    def _bar(self, begin: int, share: float) -> tuple[float, float, float, float]:
        # What is more than nothing is to be seen.
        height = max(1.0, round(share * HEIGHT, 1))
        width = WIDTH * _STEP_S / _DAY_S
        return round(self._x(begin), 1), round(HEIGHT - height, 1), width - 1, height

    def _x(self, moment: int) -> float:
        return WIDTH * (moment - self._begin) / _DAY_S

    def _times(self) -> tuple[tuple[float, str], ...]:
        step = _LABELLED_HOURS * _HOUR_S
        first = -(-self._begin // step) * step
        return tuple(
            (round(self._x(moment), 1), f"{datetime.fromtimestamp(moment, UTC):%H:%M}")
            for moment in range(first, self._end, step)
        )


def _totals(minutes: Mapping[int, Minute], step_s: int) -> dict[int, Minute]:
    totals: dict[int, Minute] = {}
    for begin, minute in minutes.items():
        step = begin // step_s * step_s
        totals[step] = totals.get(step, Minute()) + minute
    return totals


def _described(values: Sequence[float], unit: str) -> str:
    if not values:
        return "Nothing in the last day."
    return (
        f"The last value is {values[-1]:.3g}, the highest of the last day {max(values):.3g}"
        f" ({unit}). The table below the graphs has each hour."
    )
