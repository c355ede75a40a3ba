"""What a log entry looks like in each format, and the sentences of the classic one."""

from __future__ import annotations

import json
import re
import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.compile.protocol.request import render_arguments
from stapsrv.config.kinds import LogFormat
from stapsrv.observe.formats import (
    CLASSIC,
    ENCODERS,
    LogEntry,
    classic_line,
    encode_classic,
    encode_journal,
    encode_json,
    field_text,
)

from .conftest import journal_fields

# Text as Python has it from bytes that are no UTF-8, too.
TEXT = (
    st.text(st.characters(exclude_categories=()))
    | st.text(st.sampled_from('\n\r\0\x1b\x85\u2028\udcff"\\{} =a'))
    | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))
)
VALUES = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([float("nan"), float("inf")]),
    st.none(),
    st.booleans(),
    st.datetimes(),
    st.binary(),
)
FIELDS = st.fixed_dictionaries(
    {"peer": TEXT, "options": TEXT, "reason": TEXT},
    optional={"release": VALUES, "version": VALUES, "user": VALUES},
)


@st.composite
def entries(draw: st.DrawFn) -> LogEntry:
    return LogEntry(
        time=draw(st.floats(0, 4e9)),
        level=draw(st.sampled_from(["info", "warning", "error"])),
        event=draw(st.sampled_from([*CLASSIC, "some.event"])),
        fields=draw(FIELDS),
        traceback=draw(st.none() | TEXT),
    )


def test_each_format_has_its_encoder():
    assert set(ENCODERS) == set(LogFormat)


@given(entries())
def test_classic_entry_is_one_line_with_a_date(entry):
    lines = encode_classic(entry).decode().splitlines()
    dated = [line for line in lines if re.match(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ", line)]
    assert dated == lines[:1]
    assert all(row.startswith("  ") for row in lines[1:])
    assert entry.traceback or len(lines) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", encode_classic(entry).decode())


@given(entries())
def test_json_entry_is_one_line_that_parses(entry):
    line = encode_json(entry)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.decode("ascii").isprintable() or line[:-1].decode("ascii").isprintable()
    record = json.loads(line, parse_constant=lambda word: (_ for _ in ()).throw(ValueError(word)))
    assert (record["event"], record["level"]) == (entry.event, entry.level)
    assert set(entry.fields) <= set(record)
    json.dumps(record, ensure_ascii=False).encode("utf-8")


@given(entries())
def test_journal_entry_reads_back(entry):
    fields = journal_fields(encode_journal(entry))
    assert fields["STAPSRV_EVENT"] == entry.event
    assert "\n" not in fields["MESSAGE"]
    known = {f"STAPSRV_{name.upper()}" for name, value in entry.fields.items() if value is not None}
    assert {name for name in fields if name.startswith("STAPSRV_")} - {"STAPSRV_TRACEBACK"} == (
        known | {"STAPSRV_EVENT"}
    )
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) for name in fields)


BYTES = st.binary() | st.lists(
    st.sampled_from([b"\n", b"\r", b"\0", b"\x1b[2J", b"\xc2\x85", b"\xe2\x80\xa8", b" "])
).map(b"".join)


@given(st.lists(BYTES))
def test_what_a_client_asks_for_is_one_entry_in_each_format(arguments):
    """From the bytes of a request's options to those of the log."""
    options = render_arguments(arguments)
    entry = LogEntry(time=0, level="info", event="request.options", fields={"options": options})
    for encode in (encode_classic, encode_json):
        line = encode(entry).decode()
        assert line.splitlines(keepends=True) == [line]
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line[:-1])
    assert set(journal_fields(encode_journal(entry))) == {
        "MESSAGE",
        "PRIORITY",
        "SYSLOG_IDENTIFIER",
        "STAPSRV_EVENT",
        "STAPSRV_OPTIONS",
    }


@pytest.mark.parametrize(
    ("event", "fields", "line"),
    [
        ("server.starting", {"pid": 7, "user": "u"}, "===== compile server pid 7 starting as u ====="),
        ("server.listening", {"address": "[::]:5001"}, "Using network address [::]:5001"),
        ("server.threads", {"threads": 2}, "Using a maximum of 2 threads"),
        ("server.serial", {}, "Concurrency disabled"),
        ("server.signal", {"signal": 15}, "Received signal 15, exiting"),
        ("server.draining", {"outstanding": 3}, "Waiting for 3 outstanding requests to complete..."),
        ("identity.found", {"directory": "/d"}, "Certificate found in database /d"),
        (
            "identity.generating",
            {"directory": "/d"},
            "Generating a new certificate database directory in /d",
        ),
        (
            "identity.not_before",
            {"when": datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)},
            "  Not Valid Before: Tue Feb  3 04:05:06 2026 UTC",
        ),
        (
            "identity.not_after",
            {"when": datetime(2027, 2, 3, 4, 5, 6, tzinfo=UTC)},
            "  Not Valid After: Wed Feb  3 04:05:06 2027 UTC",
        ),
        ("identity.valid", {}, "Certificate is valid"),
        ("connection.accepted", {"peer": "127.0.0.1:9"}, "Accepted connection from 127.0.0.1:9"),
        ("request.one", {"peer": "x"}, "Processing 1 request..."),
        ("request.many", {"running": 4}, "Processing 4 concurrent requests..."),
        (
            "request.overloaded",
            {},
            "Server is overloaded. Processing times may be longer than normal.",
        ),
        ("request.version", {"version": "4.8"}, "Client version is 4.8"),
        ("request.options", {"options": "-p4 -e x"}, "Options passed from the client: -p4 -e x"),
        (
            "request.unserved",
            {"release": "1.2"},
            "Target kernel version 1.2 is not supported by this server",
        ),
        ("request.complete", {"peer": "127.0.0.1:9"}, "Request from 127.0.0.1:9 complete"),
    ],
)
def test_words_that_scripts_look_for(event, fields, line):
    assert classic_line(event, fields) == line


def test_event_without_a_sentence_tells_its_fields():
    assert classic_line("some.event", {"reason": "Too many"}) == "some.event reason=Too many"
    assert classic_line("bare", {}) == "bare"


def test_missing_field_becomes_a_dash():
    assert classic_line("server.refused", {}) == "The server cannot be started: -"
    assert classic_line("server.refused", {"reason": None}) == "The server cannot be started: -"


@given(st.text())
def test_no_value_breaks_a_line(value):
    line = classic_line("request.options", {"options": value})
    assert line.splitlines() == [line]
    assert not set(line) & set(map(chr, range(32)))


def test_values_stay_readable():
    assert field_text("naïve 'quotes' -e %s {x}") == "naïve 'quotes' -e %s {x}"
    assert field_text("a\nb\x1b[2J\udcff") == r"a\nb\x1b[2J\udcff"


def test_each_sentence_names_its_fields_only():
    for event, template in CLASSIC.items():
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        assert all(name.isidentifier() for name in fields), event
