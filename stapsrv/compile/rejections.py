"""One server's rejections: counted by reason, and logged without flooding the log."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import NoReturn

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.rejection import RejectReason

INTERVAL_S = 60.0  # between two lines of one reason


@attrs.define
class _Logged:
    last_s: float = -math.inf
    suppressed: int = 0


class Rejections:
    """Counts a server's rejections, and in ``total`` all servers'; logs one of each reason a minute."""

    def __init__(
        self, log: Log, total: Counter[RejectReason], *, clock: Callable[[], float] = anyio.current_time
    ) -> None:
        self.counts = Counter(dict.fromkeys(RejectReason, 0))
        self._total = total
        self._log = log
        self._clock = clock
        # A port scan or a broken client would otherwise fill the log within minutes.
        self._logged: dict[RejectReason, _Logged] = {}

    def count(self, reason: RejectReason | None, log_line: Callable[[], object]) -> None:
        """Count one rejection, and call ``log_line`` unless a like line was logged less than a minute ago.

        A fault without a reason is no rejection: it is not counted, and always logged.
        """
        if reason is not None:
            self.counts[reason] += 1
            self._total[reason] += 1
            logged = self._logged.setdefault(reason, _Logged())
            if not self._is_due(logged):
                logged.suppressed += 1
                return
            self._log_suppressed(reason, logged)
        log_line()

    async def log_suppressed(self) -> NoReturn:
        """Log once a minute how many lines were suppressed, until cancelled; then the rest."""
        try:
            while True:
                await anyio.sleep(INTERVAL_S)
                self.log_due()
        finally:
            self.log_due(at_once=True)

    def log_due(self, *, at_once: bool = False) -> None:
        """Log how many lines were suppressed of each reason whose minute is over, or of each ``at_once``."""
        for reason, logged in self._logged.items():
            if logged.suppressed and (at_once or self._is_due(logged)):
                self._log_suppressed(reason, logged)

    def _is_due(self, logged: _Logged) -> bool:
        return self._clock() - logged.last_s >= INTERVAL_S

    def _log_suppressed(self, reason: RejectReason, logged: _Logged) -> None:
        now, suppressed = self._clock(), logged.suppressed
        if suppressed:
            seconds = round(now - logged.last_s)
            self._log.warning("log.suppressed", kind=reason.value, suppressed=suppressed, seconds=seconds)
        logged.last_s, logged.suppressed = now, 0
