"""How findings are shown."""

from __future__ import annotations

import json

import pytest

from stapsrv.config.log_format import LogFormat
from stapsrv.doctor.findings import (
    document_of,
    failure,
    fault,
    has_failed,
    lines_of,
    ok,
    summary_line,
    warning,
)
from stapsrv.doctor.redact import without_passwords, without_scripts
from stapsrv.errors import ConfigError
from stapsrv.observe.formats import ENCODERS, LogEntry

FINDINGS = [ok("stap", "4.8"), warning("clock", "is off", "set it"), failure("port 1", "is taken", "free it")]


def test_a_line_each_and_one_for_the_remedy():
    lines = [line for finding in FINDINGS for line in lines_of(finding)]
    assert [line.split() for line in lines] == [
        ["ok", "stap", "4.8"],
        ["warning", "clock", "is", "off"],
        ["->", "set", "it"],
        ["FAILURE", "port", "1", "is", "taken"],
        ["->", "free", "it"],
    ]
    assert summary_line(FINDINGS) == "1 ok, 1 warning, 1 failure"
    assert summary_line([]) == "0 ok, 0 warnings, 0 failures"


def test_no_answer_commands_a_terminal():
    assert "\x1b" not in "".join(lines_of(failure("stap", "says \x1b[2J", "\x07")))


def test_only_failures_fail():
    assert has_failed(FINDINGS)
    assert not has_failed(FINDINGS[:2])


def test_document():
    document = json.loads(document_of(FINDINGS))
    assert document["exit_status"] == 1
    assert document["findings"][1] == {
        "question": "clock",
        "verdict": "warning",
        "answer": "is off",
        "remedy": "set it",
    }


def test_an_error_tells_its_place_and_remedy():
    finding = fault("port", ConfigError("is taken", where="port 5", remedy="free it"))
    assert (finding.answer, finding.remedy) == ("port 5: is taken", "free it")


DATE = "Mon Nov 23 08:21:15 2026: "


def options_as(style: LogFormat, options: str) -> str:
    """Return the very line that a server logs for a client's options."""
    entry = LogEntry(
        time=0, level="info", event="request.options", fields={"options": options, "peer": "1.2.3.4:5"}
    )
    return ENCODERS[style](entry).decode()


@pytest.mark.parametrize("style", [LogFormat.CLASSIC, LogFormat.JSON])
def test_scripts_are_left_out_of_what_servers_log(style):
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
def test_scripts_of_several_lines_as_systemtap_s_own_server_logs_them(script):
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
def test_all_else_stays(line):
    assert without_scripts(f"{line}\n") == f"{line}\n"


@pytest.mark.parametrize(
    "line", ['{"event": "request.options", "options": "-e secr', '{"a": "secret"}', "{" * 99_999]
)
def test_what_is_no_entry_is_left_out(line):
    assert without_scripts(f"{DATE}x\n{line}\n") == f"{DATE}x\n(left out)\n"


def test_the_rest_of_an_entry_at_the_beginning_is_left_out():
    assert without_scripts(f"  secret\n{DATE}x\n") == f"{DATE}x\n"


def test_passwords_in_urls_are_left_out():
    assert without_passwords('"https://me:secret@debug.example.org/ https://b@c/ http://x/a@b"') == (
        '"https://(left out)@debug.example.org/ https://(left out)@c/ http://x/a@b"'
    )


def test_others_words_are_told_in_part():
    finding = failure("kernel 6.1", "x" * 1_000_000)
    assert len(finding.answer) < 1_100
    assert len("".join(lines_of(finding))) < 1_200
