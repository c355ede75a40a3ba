"""The logs of a process: structlog in front, formats and sinks behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import structlog
from structlog.typing import EventDict
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.kinds import LogFormat
from stapsrv.observe.formats import ENCODERS, Encode, LogEntry
from stapsrv.observe.sinks import (
    JOURNAL,
    FileSink,
    JournalSink,
    Sink,
    StreamSink,
    standard_error,
    stream_descriptor,
)
from stapsrv.observe.writer import LogWriter

# For what waits to be written when a process ends: a log that hangs must not hold up the end.
FLUSH_S = 2.0


class LogBook:
    """The logs of one process, by default in ``style``: servers that name the same file share it.

    Each is written to in a thread of its own. ``terminal`` also shows the entries of all logs but streams.
    """

    def __init__(
        self, style: LogFormat = LogFormat.CLASSIC, *, terminal: Sink | None = None, journal: Path = JOURNAL
    ) -> None:
        self._style = style
        self._terminal = None if terminal is None else LogWriter(terminal)
        self._journal = journal
        self._writers: dict[Path | None, LogWriter] = {}

    @property
    def dropped(self) -> int:
        """The number of entries that files, streams and the journal have not taken so far."""
        return sum(writer.dropped for writer in list(self._writers.values()))

    def open(self, path: Path | None, style: LogFormat | None = None) -> Log:
        """Return a logger to a file or stream, to standard error for None, or to the journal.

        In the journal's format the path does not matter. The book closes what it opens. May be called in any
        thread, and waits for the file system of a file that is not open yet.

        Raises:
            ConfigError: the file or stream cannot be written, or no journal listens.
        """
        style = style or self._style
        place = self._journal if style is LogFormat.JOURNAL else path
        writer = self._writers.get(place)
        if writer is None:
            made = LogWriter(_open_sink(place, style))
            # Another thread may have been faster.
            writer = self._writers.setdefault(place, made)
            if writer is not made:
                made.sink.close()
        outputs = [(writer, ENCODERS[style])]
        # A stream is read as it is; it may even be that terminal.
        if self._terminal is not None and not isinstance(writer.sink, StreamSink):
            shown = LogFormat.CLASSIC if style is LogFormat.JOURNAL else style
            outputs.append((self._terminal, ENCODERS[shown]))
        return _logger(outputs)

    def reopen(self) -> None:
        """Begin every file again at its name, as after SIGHUP; never raises, and never waits."""
        for writer in list(self._writers.values()):
            # Each by its own name: what rotates logs has moved the old files away.
            writer.put(writer.sink.reopen)

    def flush(self) -> None:
        """Wait until all is written that was logged so far, or until :data:`FLUSH_S` is over."""
        deadline = time.monotonic() + FLUSH_S
        for writer in self._all():
            writer.flush(deadline=deadline)

    def close(self) -> None:
        """Write what waits and close every file, and the terminal; what takes longer than FLUSH_S is lost."""
        deadline = time.monotonic() + FLUSH_S
        # All of them write meanwhile, so that one that hangs costs the others no time.
        for writer in self._all():
            writer.close(deadline=deadline)

    def _all(self) -> list[LogWriter]:
        return [*self._writers.values(), *filter(None, [self._terminal])]


def _logger(outputs: Sequence[tuple[LogWriter, Encode]]) -> Log:
    """Return a logger of its own whose entries go to each output; there is no global configuration."""

    # The end of structlog's chain: no logger comes after it.
    def write(_logger: object, level: str, event: EventDict) -> NoReturn:
        name, trace = str(event.pop("event")), event.pop("exception", None)
        entry = LogEntry(time=time.time(), level=level, event=name, fields=event, traceback=trace)
        for writer, encode in outputs:
            writer.write(entry, encode)
        raise structlog.DropEvent

    logger: Log = structlog.wrap_logger(
        None,
        processors=[structlog.processors.format_exc_info, write],
        # Below info nothing is logged: such methods do nothing, and cost nothing.
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        cache_logger_on_first_use=True,
    )
    return logger


def _open_sink(place: Path | None, style: LogFormat) -> Sink:
    if place is None:
        return standard_error()
    if style is LogFormat.JOURNAL:
        return JournalSink(place)
    descriptor = stream_descriptor(place)
    return FileSink(place) if descriptor is None else StreamSink(place, descriptor)
