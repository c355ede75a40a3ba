"""How long to wait before a name is asked for, where one after the other turns out to be taken. Pure.

Somebody who claims whatever name is asked for would otherwise keep this host asking, and logging, without
end.

Source: RFC 6762, 8.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_MANY = 15
_WITHIN_S = 10.0
_PAUSE_S = 5.0
_CALM_S = 60.0
"""Without a further conflict, after which all is as it was."""


class Contests:
    """Counts the names that turned out to be taken.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=_MANY)
        self._strained = False

    def note(self) -> None:
        """Count one more."""
        now = self._clock()
        self._strained = self.pause_s > 0
        self._times.append(now)
        self._strained |= len(self._times) == _MANY and now - self._times[0] <= _WITHIN_S

    @property
    def pause_s(self) -> float:
        """How long to wait before the next name is asked for."""
        return _PAUSE_S if self._strained and self._clock() - self._times[-1] < _CALM_S else 0.0
