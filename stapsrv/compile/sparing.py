"""Log lines that may come by the thousand: the first of a kind at once, then how many more there were."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

INTERVAL_S = 60.0
"""Between two lines of a kind."""


@attrs.define
class _Kind:
    last_s: float
    suppressed: int = 0


class SparingLog:
    """Lets the first line of each kind pass, and in the next minute only counts those like it.

    Args:
        log: where the counts go.
        clock: seconds that never go back.
    """

    def __init__(self, log: Log, *, clock: Callable[[], float] = anyio.current_time) -> None:
        self._log = log
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def say(self, kind: str, line: Callable[[], object]) -> None:
        """Log what ``line`` logs when it is called, unless a line of this kind was logged a moment ago."""
        kind_now = self._kinds.get(kind)
        if kind_now is None:
            self._kinds[kind] = _Kind(self._clock())
        elif self._is_due(kind_now):
            self._tell(kind, kind_now)
        else:
            kind_now.suppressed += 1
            return
        line()

    def tell_suppressed(self, *, all_of_them: bool = False) -> None:
        """Log how many lines there were of each kind whose minute is over, or of each kind whatsoever."""
        for kind, kind_now in self._kinds.items():
            if kind_now.suppressed and (all_of_them or self._is_due(kind_now)):
                self._tell(kind, kind_now)

    def _is_due(self, kind_now: _Kind) -> bool:
        return self._clock() - kind_now.last_s >= INTERVAL_S

    def _tell(self, kind: str, kind_now: _Kind) -> None:
        now = self._clock()
        if kind_now.suppressed:
            self._log.warning(
                "log.suppressed",
                kind=kind,
                suppressed=kind_now.suppressed,
                seconds=round(now - kind_now.last_s),
            )
        kind_now.last_s, kind_now.suppressed = now, 0
