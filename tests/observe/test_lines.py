"""The classic words, and that nobody can forge a line."""

from __future__ import annotations

import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.observe.formats import CLASSIC, classic_line, field_text


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


def test_a_word_that_is_missing_costs_no_line():
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
