"""The logs of a process: structlog in front, formats and sinks behind."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from pathlib import Path

import attrs
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

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

# What every room logs through: a constant event name and fields.
Log = FilteringBoundLogger


# For what waits to be written when a process ends: a log that hangs must not hold up the end.
FLUSH_S = 2.0


@attrs.define(eq=False)
class DroppedEntries:
    """The number of entries that were lost since the process began; counted in several threads."""

    entries: int = 0
    _lock: threading.Lock = attrs.field(init=False, factory=threading.Lock)

    def add(self, entries: int) -> None:
        """Count entries."""
        with self._lock:
            self.entries += entries


class Channel:
    """A sink and the format of its entries.

    A sink that cannot take entries costs these entries and nothing else. They are counted in ``dropped``, and
    the sink gets the count as soon as it takes entries again.
    """

    def __init__(
        self, sink: Sink, style: LogFormat = LogFormat.CLASSIC, *, dropped: DroppedEntries | None = None
    ) -> None:
        self._sink = sink
        self._dropped = dropped or DroppedEntries()
        self._encode: Encode = ENCODERS[style]
        self._lost = 0

    def write(self, entry: LogEntry) -> None:
        """Pass an entry on; never raises."""
        self.append(self.encoded(entry))

    def encoded(self, entry: LogEntry) -> bytes:
        """Return an entry as the sink gets it."""
        return self._encode(entry)

    def append(self, data: bytes) -> None:
        """Pass an encoded entry on; never raises."""
        try:
            # As soon as the sink takes entries again, after a full disk say, it is told how many it missed.
            if self._lost:
                fields = {"entries": self._lost}
                lost = LogEntry(time=time.time(), level="warning", event="log.lost", fields=fields)
                self._sink.write(self._encode(lost))
                self._lost = 0
            self._sink.write(data)
        except OSError:
            self.lose(1)
            self._dropped.add(1)

    def lose(self, entries: int) -> None:
        """Tell the sink before the next entry that so many are missing."""
        self._lost += entries


class QueuedChannel(Channel):
    """A channel whose sink is written to in the thread of ``writer``: an entry that finds it full is lost."""

    def __init__(self, writer: LogWriter, style: LogFormat, *, dropped: DroppedEntries | None = None) -> None:
        super().__init__(writer.sink, style, dropped=dropped)
        self._writer = writer
        self._refused = 0

    def write(self, entry: LogEntry) -> None:
        """Have an entry written soon; never raises, and never waits."""
        data, refused = self.encoded(entry), self._refused

        def append() -> None:
            self.lose(refused)
            self.append(data)

        if self._writer.offer(append):
            self._refused = 0
        else:
            self._refused += 1
            self._dropped.add(1)


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
        self.dropped = DroppedEntries()

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
                made.end()
        channels = [QueuedChannel(writer, style, dropped=self.dropped)]
        # A stream is read as it is; it may even be that terminal.
        if self._terminal is not None and not isinstance(writer.sink, StreamSink):
            shown = LogFormat.CLASSIC if style is LogFormat.JOURNAL else style
            channels.append(QueuedChannel(self._terminal, shown))
        return open_log(*channels)

    def reopen(self) -> None:
        """Begin every file again at its name, as after SIGHUP; never raises, and never waits."""
        for writer in list(self._writers.values()):
            # Each by its own name: what rotates logs has moved the old files away.
            writer.insist(writer.sink.reopen)

    def flush(self) -> None:
        """Wait until all is written that was logged so far, or until :data:`FLUSH_S` is over."""
        deadline = time.monotonic() + FLUSH_S
        for writer in self._all():
            writer.flush(deadline=deadline)

    def close(self) -> None:
        """Write what waits and close every file, and the terminal; what takes longer than FLUSH_S is lost."""
        deadline = time.monotonic() + FLUSH_S
        for writer in self._all():
            writer.end()
        for writer in self._all():
            writer.wait_ended(deadline=deadline)

    def _all(self) -> list[LogWriter]:
        return [*self._writers.values(), *filter(None, [self._terminal])]


def open_log(*channels: Channel) -> Log:
    """Return a logger of its own that tells each channel; there is no global configuration."""
    logger: Log = structlog.wrap_logger(
        _Fan(channels),
        processors=[_with_traceback, _as_entry],
        # Below info nothing is logged: such methods do nothing, and cost nothing.
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        cache_logger_on_first_use=True,
    )
    return logger


class _Fan:
    """The end of structlog's chain: an entry of any level goes to all channels."""

    def __init__(self, channels: tuple[Channel, ...]) -> None:
        self._channels = channels

    def msg(self, entry: LogEntry) -> None:
        for channel in self._channels:
            channel.write(entry)

    debug = info = warning = error = critical = msg


def _open_sink(place: Path | None, style: LogFormat) -> Sink:
    if style is LogFormat.JOURNAL and place is not None:
        return JournalSink(place)
    if place is None:
        return standard_error()
    descriptor = stream_descriptor(place)
    return FileSink(place) if descriptor is None else StreamSink(place, descriptor)


def _with_traceback(_logger: object, _level: str, event: EventDict) -> EventDict:
    # Into text here: the one place where a traceback is wanted is the log.
    exc_info = event.pop("exc_info", None)
    if exc_info:
        exc = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
        if exc is not None:
            event["traceback"] = "".join(traceback.format_exception(exc)).rstrip()
    return event


def _as_entry(_logger: object, level: str, event: EventDict) -> tuple[tuple[LogEntry], dict[str, object]]:
    name = str(event.pop("event"))
    trace = event.pop("traceback", None)
    return (LogEntry(time=time.time(), level=level, event=name, fields=event, traceback=trace),), {}
