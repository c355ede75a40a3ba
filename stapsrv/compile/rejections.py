"""What one server rejects: counted by reason, and logged without flooding the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NoReturn

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.rejection import RejectReason

INTERVAL_S = 60.0  # between two lines of a kind


@attrs.define
class _Kind:
    last_s: float
    suppressed: int = 0


class ThrottledLog:
    """Logs the first line of each kind, and in the next minute only counts those like it."""

    def __init__(self, log: Log, *, clock: Callable[[], float] = anyio.current_time) -> None:
        self._log = log
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def log(self, kind: str, log_line: Callable[[], object]) -> None:
        """Call ``log_line``, unless a line of this kind was logged less than a minute ago."""
        last = self._kinds.get(kind)
        if last is None:
            self._kinds[kind] = _Kind(self._clock())
        elif self._is_due(last):
            self._log_count(kind, last)
        else:
            last.suppressed += 1
            return
        log_line()

    def log_suppressed(self, *, at_once: bool = False) -> None:
        """Log how many lines were suppressed of each kind whose minute is over, or of each ``at_once``."""
        for kind, last in self._kinds.items():
            if last.suppressed and (at_once or self._is_due(last)):
                self._log_count(kind, last)

    def _is_due(self, last: _Kind) -> bool:
        return self._clock() - last.last_s >= INTERVAL_S

    def _log_count(self, kind: str, last: _Kind) -> None:
        now = self._clock()
        if last.suppressed:
            seconds = round(now - last.last_s)
            self._log.warning("log.suppressed", kind=kind, suppressed=last.suppressed, seconds=seconds)
        last.last_s, last.suppressed = now, 0


class Rejections:
    """Counts a server's rejections, and in ``total`` all servers'; logs one of each reason a minute."""

    def __init__(self, log: Log, total: Counter[RejectReason]) -> None:
        # A port scan or a broken client would otherwise fill the log within minutes.
        self._throttled = ThrottledLog(log)
        self.counts = Counter(dict.fromkeys(RejectReason, 0))
        self._total = total

    def count(self, reason: RejectReason | None, log_line: Callable[[], object]) -> None:
        """Count one rejection, and call ``log_line`` unless a like line was logged less than a minute ago.

        A fault without a reason is no rejection: it is not counted, and always logged.
        """
        if reason is None:
            log_line()
            return
        self.counts[reason] += 1
        self._total[reason] += 1
        self._throttled.log(reason.value, log_line)

    async def log_suppressed(self) -> NoReturn:
        """Log once a minute how many lines were suppressed, until cancelled; then the rest."""
        try:
            while True:
                await anyio.sleep(INTERVAL_S)
                self._throttled.log_suppressed()
        finally:
            self._throttled.log_suppressed(at_once=True)
