"""Logs of Dask, Tornado and asyncio as lines of this program's log: warnings alone, and bounded."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator

import attrs
import distributed  # noqa: F401 - it sets up handlers of its own when it is imported, which are replaced here
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.text import shortened

INTERVAL_S = 60.0  # between two lines of one place in their code

_FAMILIES = ("distributed", "dask", "tornado", "bokeh", "asyncio", "py")
# Where Python's warnings go, each with the line of code that causes it below.
_WARNINGS = "py.warnings"
# Of the same failed handshake, before Dask says more; and of connections, which our own client of it tells.
_SAID_TWICE = ("tornado.general", "distributed.client")
_LONGEST = 500


@contextlib.contextmanager
def dask_logs_to(log: Log, *, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Send warnings and errors of Dask and what it is made of, and Python's, to ``log`` while the block runs.

    Anybody who reaches the port can make a handshake fail, so each kind of line comes once a minute. An error
    has its traceback, unless it is one of a connection.
    """
    before = []
    handler = _Handler(log, clock)
    for name in [*_FAMILIES, *_SAID_TWICE, _WARNINGS, *logging.root.manager.loggerDict]:
        if name.partition(".")[0] not in _FAMILIES:
            continue
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers, logger.level, logger.propagate))
        # Those below a family's name pass their lines on.
        is_top = name in _FAMILIES
        logger.handlers, logger.propagate = ([handler], False) if is_top else ([], True)
        below = logging.CRITICAL if name in _SAID_TWICE else logging.NOTSET
        logger.setLevel(logging.WARNING if is_top else below)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        for logger, handlers, level, propagate in reversed(before):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


@attrs.define
class _Place:
    last_s: float = -math.inf
    suppressed: int = 0


class _Handler(logging.Handler):
    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        super().__init__()
        self._log = log
        self._clock = clock
        # By file and line, of which there are not many; what a line says may be a peer's to choose.
        self._places: dict[tuple[str, int], _Place] = {}

    def emit(self, record: logging.LogRecord) -> None:
        place = self._places.setdefault((record.pathname, record.lineno), _Place())
        now = self._clock()
        if now - place.last_s < INTERVAL_S:
            place.suppressed += 1
            return
        more, place.last_s, place.suppressed = place.suppressed, now, 0
        message, error = record.getMessage(), record.exc_info[1] if record.exc_info else None
        if record.name == _WARNINGS:
            message = message.partition("\n")[0]
        if error is not None:
            message = f"{message}: {type(error).__name__}: {error}"
        text = shortened(message, _LONGEST)
        if more:
            text += f" (and {more} more like it before)"
        if record.levelno < logging.ERROR:
            self._log.warning("farm.dask", text=text)
            return
        # Dask's own errors of a connection are OSErrors, too.
        traced = None if isinstance(error, OSError) else error
        self._log.error("farm.dask", text=text, exc_info=traced)
