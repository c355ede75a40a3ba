"""The original's lines, JSON, and what is kept from terminals."""

from __future__ import annotations

import io
import json

import pytest
from kit.supervisor import server_info, supervisor_info

from stapsrv.control.cli.console import (
    Console,
    StatusReport,
    problem_lines,
    status_json,
    status_lines,
    title,
)

EVERYTHING = {
    "MAXCOMPRESSEDREQ": 8,
    "MAXREQSIZE": 7,
    "MAXTHREADS": 0,
    "SSL": "/nss",
    "PORT": 7001,
    "LOG": "/log",
    "NICKNAME": "web",
    "USER": "me",
    "BUILD": ["-j2", "V=1"],
    "INCLUDE": ["/a", "/b"],
    "DEFINE": ["A", "B=1"],
    "RUNTIME": "/runtime",
    "RELEASE": ["5.10", "6.1"],
    "ARCH": "x86_64",
    "KEEP": True,
}
LOST = {"id": 5, "settings": {"ARCH": "x86_64", "NICKNAME": "old"}, "record": "/stat/5.stat"}


def report(*servers: dict[str, object], **others) -> StatusReport:
    return StatusReport([supervisor_info("me", *servers)] if servers else [], **others)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "stap-server"),
        (
            EVERYTHING,
            'stap-server -a "x86_64" -r "5.10" -r "6.1" -R "/runtime" -D "A" -D "B=1" -I "/a" -I "/b"'
            ' -B "-j2" -B "V=1" -u "me" -n "web" --log "/log" --port "7001" --ssl "/nss" --max-threads "0"'
            ' --max-request-size "7" --max-compressed-request "8"',
        ),
        ({"BUILD": ["A='x y'"], "RELEASE": []}, "stap-server -B \"A='x y'\""),
        ({"DEFINE": ['S="a\\n"', "\\"], "LOG": '/a"b'}, r'stap-server -D "S=\"a\\n\"" -D "\\" --log "/a\"b"'),
    ],
)
def test_title(settings, line):
    assert title(settings) == line


@pytest.mark.parametrize(
    ("state", "line", "status"),
    [
        ("serving", "running as PID 7", 0),
        ("starting", "running as PID 7", 0),
        ("draining", "running as PID 7", 0),
        ("stopping", "running as PID 7", 0),
        ("failed", "started as PID 7 is no longer running", 1),
        ("backing-off", "started as PID 7 is no longer running", 1),
    ],
)
def test_a_server_in_each_state(state, line, status):
    told = report(server_info(7, settings={"ARCH": "x86_64"}, state=state))
    assert status_lines(told) == [f'stap-server -a "x86_64" -n "7" {line}']
    assert told.exit_status == status


def test_no_server():
    for told in (report(), StatusReport([supervisor_info("me")])):
        assert status_lines(told) == ["No managed stap-server is running"]
        assert (told.exit_status, told.is_empty) == (3, True)


def test_lost_servers_and_remarks_come_last():
    told = report(server_info(7), orphaned=[LOST], remarks=["No stap-server running as pid 9"])
    assert status_lines(told) == [
        'stap-server -n "7" running as PID 7',
        'stap-server -a "x86_64" -n "old" started as PID 5 is no longer running',
        "No stap-server running as pid 9",
    ]
    assert told.exit_status == 1


def test_a_supervisor_that_does_not_answer_is_a_failure():
    assert report(problems=["it sleeps"]).exit_status == 1


def test_an_exit_status_that_is_known_better():
    assert report(remarks=["No stap-server running as pid 9"], known_status=1).exit_status == 1


def test_reasons_of_servers_that_are_down():
    told = report(
        server_info(7, state="failed", reason="port 80: no"),
        server_info(8, state="backing-off"),
        server_info(9, reason="an old story"),
    )
    assert problem_lines(told) == ["7: port 80: no", "8: is backing-off"]


def test_json():
    told = report(server_info(7), orphaned=[LOST], remarks=["r"], problems=["p"])
    assert json.loads(status_json(told)) == {
        "supervisors": [supervisor_info("me", server_info(7))],
        "lost": [LOST],
        "remarks": ["r"],
        "problems": ["p"],
        "exit_status": 1,
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode …", "plain ünïcode …"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\udcff\u202e", "\\udcff\\u202e"),
    ],
)
def test_nothing_that_a_terminal_would_obey_is_printed(text, shown):
    out, err = io.StringIO(), io.StringIO()
    console = Console(out, err)
    console.say(text)
    console.complain(text)
    assert out.getvalue() == f"{shown}\n"
    if "\n" not in text:
        assert err.getvalue() == f"stap-server: {shown}\n"


def test_each_line_of_a_fault_stands_alone():
    err = io.StringIO()
    Console(io.StringIO(), err).complain("a\nb", "c")
    assert err.getvalue() == "stap-server: a\nstap-server: b\nstap-server: c\n"
