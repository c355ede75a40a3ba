"""What one server turned away: counted by reason, and told of in its log without flooding it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NoReturn

import anyio
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.sparing import INTERVAL_S, SparingLog
from stapsrv.refusal import Refusal


class Refusals:
    """Counts refusals and has them logged: of each reason the first line at once, then one a minute.

    Args:
        log: the server's own.
        total: counts along, for all servers of the process.
    """

    def __init__(self, log: Log, total: Counter[Refusal]) -> None:
        self._counts = Counter(dict.fromkeys(Refusal, 0))
        self._total = total
        self._lines = SparingLog(log)

    @property
    def counts(self) -> Mapping[Refusal, int]:
        """How many there were so far, of every reason that there is."""
        return MappingProxyType(self._counts)

    def note(self, refusal: Refusal | None, line: Callable[[], object]) -> None:
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
        self._lines.say(refusal.value, line)

    async def tell(self) -> NoReturn:
        """Log what was suppressed, once a minute, until cancelled; then what is left of it."""
        try:
            while True:
                await anyio.sleep(INTERVAL_S)
                self._lines.tell_suppressed()
        finally:
            self._lines.tell_suppressed(all_of_them=True)
