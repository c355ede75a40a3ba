"""Ends a process that a hanging thread holds up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger as Log

FORCE_EXIT_S = 19.0
"""After the command to end at once; the regular clean-up is bounded and takes a few seconds."""
_LOGGING_S = 1.0


def force_exit_after(
    log: Log, flush: Callable[[], object] = lambda: None, *, within_s: float = FORCE_EXIT_S
) -> None:
    """Start timers that end this process in ``within_s`` seconds, with status 1 and a line in the log.

    ``flush`` has the line written.
    """

    # The event loop and the interpreter's exit wait for their threads; one that is in a call into a dead file
    # system never returns. Compiles end with this process (their death signal), and the next start removes
    # their files.
    def report() -> None:
        log.error("server.hangs", seconds=within_s)
        flush()
        end()

    def end() -> None:
        os._exit(1)

    # Two timers, since it may be the log that hangs.
    for call, delay_s in ((end, within_s + _LOGGING_S), (report, within_s)):
        timer = threading.Timer(delay_s, call)
        timer.daemon = True
        timer.start()
