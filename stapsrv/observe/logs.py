"""Where log lines go and how they look: structlog in front, a file that survives rotation behind."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Protocol

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from stapsrv.errors import ConfigError
from stapsrv.observe.lines import classic_line, printable
from stapsrv.observe.streams import StreamSink, stream_descriptor

Log = FilteringBoundLogger
"""What every room logs through: a constant event name and fields."""


class LogFormat(enum.Enum):
    """How a line looks."""

    CLASSIC = "classic"
    JSON = "json"


class Sink(Protocol):
    """Takes finished lines."""

    def write(self, line: str) -> None:
        """Append ``line``, which has no line end; never raises."""


class TerminalSink:
    """Writes to standard error."""

    def write(self, line: str) -> None:
        """Append a line; a terminal that went away is not an error."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


class FileSink:
    """Appends to a file by its name: when that is moved away (log rotation), a new one is begun.

    A full or failing disk costs lines and nothing else: they are counted, and the count is written
    as soon as the file takes lines again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lost = 0
        self._fd = -1
        try:
            self._open()
        except OSError as exc:
            raise ConfigError(
                f"cannot be written ({exc.strerror})",
                where=f"log file {path}",
                remedy="give a file in a directory that the server's user may write to, with --log",
            ) from exc

    def write(self, line: str) -> None:
        """Append a line, in a file of the expected name."""
        try:
            if self._moved_away():
                self._open()
            if self._lost:
                lost = f"{self._lost} log lines were lost while the log could not be written"
                self._append(timestamp() + lost)
                self._lost = 0
            self._append(line)
        except OSError:
            self._lost += 1

    def reopen(self) -> None:
        """Begin again at the file's name, as after SIGHUP; on failure the open file stays in use."""
        with contextlib.suppress(OSError):
            self._open()

    def close(self) -> None:
        """Close the file; later lines open it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.close()
        self._fd = fd

    def _append(self, line: str) -> None:
        os.write(self._fd, line.encode("utf-8", "backslashreplace") + b"\n")

    def _moved_away(self) -> bool:
        if self._fd < 0:
            return True
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return True
        opened = os.fstat(self._fd)
        return (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino)


class LogBook:
    """The log files of one process: servers that name the same file share it.

    Args:
        extra: sinks that get every line of every log file, such as the terminal.
        style: how lines look.
    """

    def __init__(self, *extra: Sink, style: LogFormat = LogFormat.CLASSIC) -> None:
        self._extra = extra
        self._style = style
        self._files: dict[Path, FileSink | StreamSink] = {}

    def open(self, path: Path) -> Log:
        """Return a logger that appends to ``path``, or writes to the stream that it stands for.

        Raises:
            ConfigError: it cannot be written.
        """
        if path not in self._files:
            descriptor = stream_descriptor(path)
            self._files[path] = FileSink(path) if descriptor is None else StreamSink(path, descriptor)
        sink = self._files[path]
        # A stream is read as it is; it may even be that terminal.
        extra = () if isinstance(sink, StreamSink) else self._extra
        return open_log(sink, *extra, style=self._style)

    def reopen(self) -> None:
        """Begin every file again at its name, as after SIGHUP."""
        for file in self._files.values():
            file.reopen()

    def close(self) -> None:
        """Close every file."""
        for file in self._files.values():
            file.close()


def timestamp() -> str:
    """Return the classic prefix ``Day Mon DD HH:MM:SS YYYY: ``, in local time and English."""
    return f"{time.ctime()}: "


def open_log(*sinks: Sink, style: LogFormat = LogFormat.CLASSIC) -> Log:
    """Return a logger of its own that writes to ``sinks``; there is no global configuration.

    Args:
        sinks: each gets every line.
        style: classic lines, or one JSON object a line.
    """
    render = _render_json if style is LogFormat.JSON else _render_classic
    logger: Log = structlog.wrap_logger(
        _Lines(sinks),
        processors=[_with_traceback, render],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        cache_logger_on_first_use=True,
    )
    return logger


class _Lines:
    """The end of structlog's chain: every level is a line to all sinks."""

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks

    def msg(self, line: str) -> None:
        for sink in self._sinks:
            for part in line.split("\n"):
                sink.write(part)

    debug = info = warning = error = critical = msg


def _with_traceback(_logger: object, _level: str, event: EventDict) -> EventDict:
    """Turn ``exc_info`` into text: the one place where a traceback is wanted is the log."""
    exc_info = event.pop("exc_info", None)
    if exc_info:
        exc = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
        if exc is not None:
            event["traceback"] = "".join(traceback.format_exception(exc)).rstrip()
    return event


def _render_classic(_logger: object, _level: str, event: EventDict) -> str:
    name = str(event.pop("event"))
    trace = event.pop("traceback", None)
    line = timestamp() + classic_line(name, event)
    if trace is None:
        return line
    return "\n".join([line, *("  " + printable(row) for row in str(trace).splitlines())])


def _render_json(_logger: object, level: str, event: EventDict) -> str:
    record = {"time": time.time(), "level": level, **event}
    return json.dumps(record, default=str)
