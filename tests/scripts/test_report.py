"""A check's results for people and for programs."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from stapsrv.scripts.matrix import Cell, Difference, Result, Verdict
from stapsrv.scripts.report import Report, junit_xml, report_json, result_from, result_json, text_lines

NEW, OLD = "6.1.0-10-amd64", "6.1.0-9-amd64"


def result(script: str, release: str, verdict: Verdict, **facts: object) -> Result:
    return Result(cell=Cell("/srv", script, release), verdict=verdict, **facts)


REPORT = Report(
    (
        result("a.stp", NEW, Verdict.FAILS, message="error: \x1b[31m<y>", seconds=2.04),
        result("a.stp", OLD, Verdict.OK, seconds=1.0, cached=True),
        result("b.stp", NEW, Verdict.EXPECTED, message="error: z", seconds=1.0),
        result("b.stp", OLD, Verdict.UNTRIED, message="busy"),
    ),
    (Difference(Cell("/srv", "a.stp", NEW), f"worked on {OLD}, fails on {NEW}: error: y"),),
)


def test_text_begins_with_what_is_different():
    assert text_lines(REPORT) == [
        f"a.stp: worked on {OLD}, fails on {NEW}: error: y",
        "",
        f"SCRIPT  {OLD}  {NEW}",
        "a.stp   ok             fails 2.0s",
        "b.stp   not tried      expected failure 1.0s",
        "",
        rf"a.stp on {NEW}: fails: error: \x1b[31m<y>",
        f"b.stp on {OLD}: not tried: busy",
        "",
        f"{OLD}: 2 scripts: 1 ok, 1 not tried",
        f"{NEW}: 2 scripts: 1 fails, 1 expected failure",
    ]


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([], 2),
        ([Verdict.OK, Verdict.WARNS, Verdict.EXPECTED, Verdict.LEFT_OUT], 0),
        ([Verdict.OK, Verdict.FAILS], 1),
        ([Verdict.UNEXPECTED], 1),
        ([Verdict.UNTRIED], 1),
    ],
)
def test_exit_status(verdicts, status):
    assert Report(tuple(result("a.stp", NEW, verdict) for verdict in verdicts)).exit_status == status


def test_junit_has_a_suite_for_each_release():
    root = ET.fromstring(junit_xml(REPORT))
    old, new = root
    assert (old.get("name"), old.get("tests"), old.get("errors")) == (OLD, "2", "1")
    assert (new.get("failures"), new.get("skipped")) == ("1", "1")
    failure = new.find("testcase[@name='a.stp']/failure")
    assert failure is not None
    assert failure.get("message") == "error: ?[31m<y>"


def test_json_and_back():
    document = report_json(REPORT)
    assert document["exit_status"] == 1
    assert document["releases"] == [OLD, NEW]
    for each in REPORT.results:
        assert result_from(result_json(each)) == each
