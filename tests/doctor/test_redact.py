"""Clients' scripts and passwords are left out."""

from __future__ import annotations

import pytest

from stapsrv.config.kinds import LogFormat
from stapsrv.doctor.redact import without_passwords, without_scripts
from stapsrv.observe.formats import ENCODERS, LogEntry

DATE = "Mon Nov 23 08:21:15 2026: "


def options_as(style: LogFormat, options: str) -> str:
    """Return the very line that a server logs for a client's options."""
    entry = LogEntry(
        time=0, level="info", event="request.options", fields={"options": options, "peer": "1.2.3.4:5"}
    )
    return ENCODERS[style](entry).decode()


@pytest.mark.parametrize("style", [LogFormat.CLASSIC, LogFormat.JSON])
def test_scripts_in_log_entries_are_left_out(style):
    left = without_scripts(options_as(style, '-p4 -e probe begin { println("secret") }'))
    assert "secret" not in left
    assert "Options passed from the client: (left out)" in left
    assert left.count("\n") == 1


@pytest.mark.parametrize(
    "script",
    [
        "probe begin {\n  secret\n}",
        "probe begin\n{ secret }",
        "a\n  b {\n{ secret\n",
        '\n["secret"]',
        "\x0bsecret",
    ],
)
def test_unescaped_scripts_of_several_lines_are_left_out(script):
    log = f"{DATE}Options passed from the client: -e {script}\n{DATE}Certificate is valid\n"
    left = without_scripts(log)
    assert "secret" not in left
    assert left.endswith(f"{DATE}Certificate is valid\n")


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "request.summary", "options": "9cd0dc9e"}',
        f"{DATE}Certificate is valid",
        f"{DATE}The server crashed:\n  Traceback (most recent call last):\n    File",
    ],
)
def test_other_lines_stay(line):
    assert without_scripts(f"{line}\n") == f"{line}\n"


@pytest.mark.parametrize(
    "line", ['{"event": "request.options", "options": "-e secr', '{"a": "secret"}', "{" * 99_999]
)
def test_json_that_is_not_an_entry_is_left_out(line):
    assert without_scripts(f"{DATE}x\n{line}\n") == f"{DATE}x\n(left out)\n"


def test_text_before_the_first_entry_is_left_out():
    assert without_scripts(f"  secret\n{DATE}x\n") == f"{DATE}x\n"


def test_passwords_in_urls_are_left_out():
    assert without_passwords('"https://me:secret@debug.example.org/ https://b@c/ http://x/a@b"') == (
        '"https://(left out)@debug.example.org/ https://(left out)@c/ http://x/a@b"'
    )
