"""The end of a process that something holds up: a thread that hangs cannot be cancelled, only left behind.

The event loop waits for its threads, and so does the interpreter at its exit. Where one of them is in a call
into a file system that does not answer, that would be for ever.
"""

from __future__ import annotations

import os
import threading

from structlog.typing import FilteringBoundLogger as Log

LAST_RESORT_S = 20.0
"""After the command to end at once. The clean-up before it is bounded, and takes some seconds at the most."""

_FAILED = 1


def end_for_certain(log: Log, *, within_s: float = LAST_RESORT_S) -> None:
    """See to it that this process ends within ``within_s`` seconds; returns at once.

    Compiles end with it (their death signal), and what it leaves on the disk is swept at the next start.
    """

    def end() -> None:
        log.error("server.hangs", seconds=within_s)
        os._exit(_FAILED)

    timer = threading.Timer(within_s, end)
    timer.daemon = True
    timer.start()
