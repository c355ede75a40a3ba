"""One event is one entry, whatever a client put into it."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from stapsrv.compile.protocol.request import render_arguments
from stapsrv.config.kinds import LogFormat
from stapsrv.observe.formats import CLASSIC, ENCODERS, LogEntry, encode_classic, encode_journal, encode_json

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
