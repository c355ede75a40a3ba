"""Findings as people and programs get them."""

from __future__ import annotations

import json

from stapsrv.doctor.findings import (
    document_of,
    error,
    failure,
    has_failed,
    lines_of,
    ok,
    summary_line,
    warning,
)
from stapsrv.errors import ConfigError

FINDINGS = [ok("stap", "4.8"), warning("clock", "is off", "set it"), failure("port 1", "is taken", "free it")]


def test_finding_is_a_line_and_one_for_the_remedy():
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


def test_control_characters_are_not_printed():
    assert "\x1b" not in "".join(lines_of(failure("stap", "says \x1b[2J", "\x07")))


def test_only_failures_fail():
    assert has_failed(FINDINGS)
    assert not has_failed(FINDINGS[:2])


def test_document_has_findings_and_exit_status():
    document = json.loads(document_of(FINDINGS))
    assert document["exit_status"] == 1
    assert document["findings"][1] == {
        "question": "clock",
        "verdict": "warning",
        "answer": "is off",
        "remedy": "set it",
    }


def test_error_becomes_answer_and_remedy():
    finding = error("port", ConfigError("is taken", where="port 5", remedy="free it"))
    assert (finding.answer, finding.remedy) == ("port 5: is taken", "free it")


def test_long_answer_is_shortened():
    finding = failure("kernel 6.1", "x" * 1_000_000)
    assert len(finding.answer) < 1_100
    assert len("".join(lines_of(finding))) < 1_200
