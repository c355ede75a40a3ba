"""Log lines that may come by the thousand: the first of a kind at once, then how many more there were.

What one server turned away: counted by reason, and told of in its log without flooding it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NoReturn

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.rejection import RejectReason

INTERVAL_S = 60.0
"""Between two lines of a kind."""


@attrs.define
class _Kind:
    last_s: float
    suppressed: int = 0


class ThrottledLog:
    """Lets the first line of each kind pass, and in the next minute only counts those like it.

    Args:
        log: where the counts go.
        clock: seconds that never go back.
    """

    def __init__(self, log: Log, *, clock: Callable[[], float] = anyio.current_time) -> None:
        self._log = log
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def log(self, kind: str, line: Callable[[], object]) -> None:
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

    def log_suppressed(self, *, all_of_them: bool = False) -> None:
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


class Rejections:
    """Counts refusals and has them logged: of each reason the first line at once, then one a minute.

    Args:
        log: the server's own.
        total: counts along, for all servers of the process.
    """

    def __init__(self, log: Log, total: Counter[RejectReason]) -> None:
        self._counts = Counter(dict.fromkeys(RejectReason, 0))
        self._total = total
        self._lines = ThrottledLog(log)

    @property
    def counts(self) -> Mapping[RejectReason, int]:
        """How many there were so far, of every reason that there is."""
        return MappingProxyType(self._counts)

    def count(self, refusal: RejectReason | None, line: Callable[[], object]) -> None:
        """Count one, and log what ``line`` logs unless the log had the like a moment ago.

        Args:
            refusal: the reason; None for a fault that is no refusal of ours: not counted, always logged.
            line: called to log it.
        """
        if refusal is None:
            line()
            return
        self._counts[refusal] += 1
        self._total[refusal] += 1
        self._lines.log(refusal.value, line)

    async def log_suppressed(self) -> NoReturn:
        """Log what was suppressed, once a minute, until cancelled; then what is left of it."""
        try:
            while True:
                await anyio.sleep(INTERVAL_S)
                self._lines.log_suppressed()
        finally:
            self._lines.log_suppressed(all_of_them=True)
