"""What a log entry looks like in each format. Pure: an entry in, bytes out.

Whatever a client sent, one entry is one entry: control characters are escaped in the classic and the JSON
format, and the journal's own framing counts bytes. Only a traceback takes further lines in the classic
format; they are indented, where an entry begins with a date.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeAlias

import attrs

from stapsrv.config.log_format import LogFormat
from stapsrv.observe.lines import classic_line, printable

PROGRAM = "stap-serverd"

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog(3), which the journal has taken over."""
_LENGTH = struct.Struct("<Q")


@attrs.frozen(kw_only=True)
class LogEntry:
    """One event.

    Attributes:
        time: seconds since 1970.
        level: ``info``, ``warning``, ``error``, ….
        event: its name, ``room.what``.
        fields: what is known of it.
        traceback: of the exception that it is about, if any; several lines.
    """

    time: float
    level: str
    event: str
    fields: Mapping[str, object]
    traceback: str | None = None

    @property
    def sentence(self) -> str:
        """The entry's words, on one line."""
        return classic_line(self.event, self.fields)


Encode: TypeAlias = Callable[[LogEntry], bytes]


def encode_classic(entry: LogEntry) -> bytes:
    """Return ``Day Mon DD HH:MM:SS YYYY: SENTENCE``, in local time and English, and the traceback below."""
    rows = [f"{time.ctime(entry.time)}: {entry.sentence}"]
    rows += (f"  {printable(row)}" for row in (entry.traceback or "").splitlines())
    return "".join(f"{row}\n" for row in rows).encode("utf-8", "backslashreplace")


def encode_json(entry: LogEntry) -> bytes:
    """Return one JSON object on one line of ASCII.

    Its members are ``time`` (UTC, ISO 8601), ``level``, ``event``, ``message`` (the classic sentence), the
    fields of the event and, where there is one, ``traceback``.
    """
    when = datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="milliseconds")
    record = {
        "time": when.replace("+00:00", "Z"),
        "level": entry.level,
        "event": entry.event,
        "message": entry.sentence,
        **{name: _json_value(value) for name, value in entry.fields.items()},
    }
    if entry.traceback is not None:
        record["traceback"] = _text(entry.traceback)
    return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"


def encode_journal(entry: LogEntry) -> bytes:
    """Return an entry in the journal's own form: ``MESSAGE``, ``PRIORITY``, and a ``STAPSRV_`` field each.

    Source: systemd, Native Journal Protocol: ``NAME=value`` and a line end; a value with line ends
    follows its name and its length in eight bytes, little-endian.
    """
    record = {
        "MESSAGE": entry.sentence,
        "PRIORITY": str(_PRIORITIES.get(entry.level, _PRIORITIES["info"])),
        "SYSLOG_IDENTIFIER": PROGRAM,
        "STAPSRV_EVENT": entry.event,
        **{
            f"STAPSRV_{name.upper()}": _journal_value(value)
            for name, value in entry.fields.items()
            if value is not None
        },
    }
    if entry.traceback is not None:
        record["STAPSRV_TRACEBACK"] = entry.traceback
    return b"".join(_journal_field(name, value) for name, value in record.items())


ENCODERS: Mapping[LogFormat, Encode] = {
    LogFormat.CLASSIC: encode_classic,
    LogFormat.JSON: encode_json,
    LogFormat.JOURNAL: encode_journal,
}


def _text(value: object) -> str:
    """Return ``value`` as text that UTF-8 can hold."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _json_value(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return value.isoformat() if isinstance(value, datetime) else _text(value)


def _journal_value(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else _text(value)


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), _LENGTH.pack(len(data)), data)
