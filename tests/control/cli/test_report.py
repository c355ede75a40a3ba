"""Reports of a command: the original's lines, and one JSON document."""

from __future__ import annotations

import io
import json

import pytest

from stapsrv.control.cli.console import Console
from stapsrv.control.cli.report import JsonReporter, Reporter, Result, Verb


@pytest.fixture
def out():
    return io.StringIO()


def test_classic_lines_are_the_operation_and_whether_it_is_done(out):
    reporter = Reporter(Console(out, out))
    reporter.begin(Verb.START, ["web", "bad"])
    reporter.result(Result(Verb.START, {"NICKNAME": "web"}, "web"))
    reporter.result(Result(Verb.START, {"PORT": 80}, "bad", error="port 80 is for root\nor so"))
    reporter.remark("No managed stap-server is running")
    reporter.remark("No stap-server running as pid 9", done=False)
    reporter.finish(1)
    assert out.getvalue().splitlines() == [
        'Starting stap-server -n "web"',
        "OK",
        'Starting stap-server --port "80"',
        "FAILED",
        "stap-server: bad: port 80 is for root",
        "stap-server: or so",
        "No managed stap-server is running",
        "No stap-server running as pid 9",
        "FAILED",
    ]


def test_json_sorts_remarks_by_whether_they_are_problems(out):
    reporter = JsonReporter(Console(out, out))
    reporter.remark("done", done=True)
    reporter.remark("not done", done=False)
    reporter.complain("first\nsecond")
    assert out.getvalue() == ""
    reporter.finish(1)
    assert json.loads(out.getvalue()) == {
        "servers": [],
        "remarks": ["done"],
        "problems": ["not done", "first", "second"],
        "exit_status": 1,
    }


def test_json_tells_all_at_the_end(command_line, hosting):
    hosting.errors["bad"] = "no"
    ran = command_line.run(
        "start", "-n", "web", "-n", "bad", "-r", "9.9", "--json", "--log", "", "--log", "", "--log", "/l"
    )
    document = json.loads(ran.out)
    assert ran.err == ""
    assert document["exit_status"] == ran.status == 1
    assert document["problems"] == ["warning: --log /l applies to no server"]
    good, bad = document["servers"]
    assert (good["action"], good["already"], good["error"], good["server"]["id"]) == (
        "start",
        True,
        None,
        4194305,
    )
    assert (bad["action"], bad["name"], bad["error"], bad["server"]) == ("start", "bad", "no", None)
    assert bad["settings"]["RELEASE"] == ["9.9"]
