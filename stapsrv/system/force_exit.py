"""The end of a process that something holds up: a thread that hangs cannot be cancelled, only left behind.

The event loop waits for its threads, and so does the interpreter at its exit. Where one of them is in a call
into a file system that does not answer, that would be for ever.
"""

from __future__ import annotations

import os
import threading

from structlog.typing import FilteringBoundLogger as Log

LAST_RESORT_S = 19.0
"""After the command to end at once. The clean-up before it is bounded, and takes some seconds at the most."""

_FAILED = 1
_TELLING_S = 1.0
"""For the log to take its last line."""


def force_exit_after(log: Log, *, within_s: float = LAST_RESORT_S) -> None:
    """See to it that this process ends in ``within_s`` seconds, or one more; returns at once.

    Compiles end with it (their death signal), and what it leaves on the disk is swept at the next start.
    """

    def tell() -> None:
        log.error("server.hangs", seconds=within_s)
        end()

    def end() -> None:
        os._exit(_FAILED)

    # What hangs may be the log.
    for call, delay_s in ((end, within_s + _TELLING_S), (tell, within_s)):
        timer = threading.Timer(delay_s, call)
        timer.daemon = True
        timer.start()
