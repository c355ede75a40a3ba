"""How findings are shown."""

from __future__ import annotations

import json

import pytest

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
from stapsrv.doctor.leaving_out import without_scripts
from stapsrv.errors import ConfigError

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


@pytest.mark.parametrize(
    ("line", "left"),
    [
        (
            "Mon Nov 23 08:21:15 2026: Options passed from the client: -p4 -e probe begin { secret }",
            "Mon Nov 23 08:21:15 2026: Options passed from the client: (left out)",
        ),
        (
            '{"event": "request.options", "options": "-e secret", "peer": "1.2.3.4:5"}',
            '{"event": "request.options", "options": "(left out)", "peer": "1.2.3.4:5"}',
        ),
        ('{"event": "request.options", "options": "-e secr', "(left out)"),
        ('["secret"]', '["secret"]'),
        (
            '{"event": "request.summary", "options": "9cd0dc9e"}',
            '{"event": "request.summary", "options": "9cd0dc9e"}',
        ),
        ("Mon Nov 23 08:21:15 2026: Certificate is valid", "Mon Nov 23 08:21:15 2026: Certificate is valid"),
    ],
)
def test_scripts_are_left_out_of_logs(line, left):
    assert without_scripts(f"before\n{line}\nafter\n") == f"before\n{left}\nafter\n"
