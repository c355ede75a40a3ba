"""A bound on the processor time of what hostile input is given to."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class TooSlow(BaseException):
    """One input took more processor time than it may."""


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the block when this process has used so much processor time; main thread only."""

    # Processor time, not the clock's: a busy machine must not make an input look slow.
    def end(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
