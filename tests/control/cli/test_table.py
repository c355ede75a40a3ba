"""The table of servers, and what a person sees of a command under way."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from kit.supervisor import server_info, supervisor_info

from stapsrv.control.cli.console import Console, StatusReport
from stapsrv.control.cli.report import Result, Verb
from stapsrv.control.cli.table import TerminalReporter, print_table, status_table, terminal_width

NOW = datetime(2026, 2, 3, 12, 0, 0, tzinfo=UTC)
NATIVE = server_info(
    4194305,
    settings={
        "NICKNAME": "native",
        "RELEASE": ["6.1.0-56-amd64"],
        "ARCH": "x86_64",
        "USER": "me",
        "PORT": 5001,
    },
    running=2,
    queued=10,
    done=1234,
)
BROKEN = server_info(
    4194306,
    settings={"RELEASE": ["5.10", "6.1"], "ARCH": "arm64", "USER": "you"},
    state="failed",
    since="2026-01-31T04:05:06.789Z",
    reason="port 80: is for \x1b[31mroot",
    port=None,
    certificate_expires=None,
)
LOST = {"id": 5, "settings": {"NICKNAME": "old", "PORT": 7001, "USER": "me"}, "record": "/stat/5.stat"}


def test_table():
    report = StatusReport([supervisor_info("me", NATIVE)])
    assert status_table(report, colour=False, now=NOW) == [
        "NICKNAME  ID       RELEASE         ARCH    PORT  STATE    SINCE     RUNNING  QUEUED  DONE  FAILED"
        "  CERT UNTIL",
        "native    4194305  6.1.0-56-amd64  x86_64  5001  serving  04:05:06        2      10  1234       0"
        "  2027-02-03",
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["bubblewrap"], ["requests are contained by bubblewrap"]),
        (["off"], ["requests are not contained: SANDBOX=off"]),
        (["landlock", "landlock"], ["requests are contained by landlock"]),
        (
            ["off", "landlock"],
            ["requests are not contained: SANDBOX=off", "requests are contained by landlock"],
        ),
    ],
)
def test_what_holds_requests_in(names, words):
    report = StatusReport([{**supervisor_info("me", NATIVE), "sandbox": name} for name in names])
    assert status_table(report, colour=False, now=NOW)[-len(words) :] == words


def test_what_should_hold_requests_in_and_does_not():
    info = {**supervisor_info("me", NATIVE), "sandbox": "landlock", "sandbox_failures": ["bubblewrap: no"]}
    lines = status_table(StatusReport([info, info]), colour=False, now=NOW)
    assert lines[-2:] == [
        "installed, and does not work here: bubblewrap: no",
        "requests are contained by landlock",
    ]


def test_scripts_have_a_line_for_each_release_and_none_without_collections():
    info = {
        **supervisor_info("me", NATIVE),
        "scripts": {"6.1": {"ok": 41, "fails": 2}, "6.9\x1b": {"not tried": 1}},
        "new_releases": ["6.9\x1b", "6.10"],
    }
    lines = status_table(StatusReport([info]), colour=False, now=NOW)
    assert lines[1:] == [
        lines[1],
        "",
        "Scripts for 6.1: 41 ok, 2 fails",
        r"Scripts for 6.9\x1b (installed since the start): 1 not tried",
    ]
    assert len(status_table(StatusReport([{**info, "scripts": {}}]), colour=False, now=NOW)) == 2


FARM = {
    "name": "dask",
    "address": "tls://farm:8786",
    "connected": True,
    "since": NATIVE["since"],
    "reason": None,
    "workers": 2,
    "slots": 8,
    "releases": ["6.1 x86_64", "6.6 x86_64"],
    "running": 5,
    "waiting": 1,
    "retries": 0,
    "lost_workers": 0,
}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {},
            [
                "connected since 04:05:06, 2 workers with 8 slots; 5 jobs running, 1 waiting",
                "compiles for 6.1 x86_64, 6.6 x86_64",
            ],
        ),
        (
            {"releases": [], "workers": 1, "retries": 1, "lost_workers": 4},
            [
                "connected since 04:05:06, 1 worker with 8 slots; 5 jobs running, 1 waiting; "
                "4 workers lost, 1 job tried again",
                "compiles for no release",
            ],
        ),
        (
            {"connected": False, "reason": "no route\x1b"},
            ["not connected since 04:05:06: no route\\x1b; 1 waiting job"],
        ),
        ({"connected": False}, ["not connected since 04:05:06: the connection is lost; 1 waiting job"]),
    ],
)
def test_farm_is_told_of_once_below_the_servers(facts, words):
    servers = [{**NATIVE, "engine": {**FARM, **facts}}, {**NATIVE, "engine": {**FARM, **facts}}, NATIVE]
    lines = status_table(StatusReport([supervisor_info("me", *servers)]), colour=False, now=NOW)
    assert [line for line in lines if line.startswith("dask")] == [
        f"dask at tls://farm:8786: {said}" for said in words
    ]


def test_table_of_several_users_with_reasons_below():
    report = StatusReport(
        [supervisor_info("me", NATIVE), supervisor_info("you", BROKEN)],
        [LOST],
        ["No stap-server running as pid 9"],
    )
    lines = status_table(report, colour=False, now=NOW)
    assert [line.split()[:3] for line in lines[:4]] == [
        ["NICKNAME", "ID", "USER"],
        ["native", "4194305", "me"],
        ["4194306", "4194306", "you"],
        ["old", "5", "me"],
    ]
    assert "5.10, 6.1" in lines[2]
    assert "failed   2026-01-31" in lines[2]
    assert "7001  lost" in lines[3]
    assert lines[4:] == [
        "",
        "4194306: port 80: is for \\x1b[31mroot",
        "lost: the supervisor is gone without a word; stap-server start takes these servers up again",
        "No stap-server running as pid 9",
    ]


def test_table_shows_what_compiles_took_of_late():
    recent = {"requests": 3, "queue_s": 0.0, "compile_s": 2.345}
    busy = {**NATIVE, "id": 4194399, "recent": recent}
    lines = status_table(StatusReport([supervisor_info("me", NATIVE, busy)]), colour=False, now=NOW)
    column = lines[0].index("COMPILE")
    assert [line[column : column + 7].strip() for line in lines[1:3]] == ["-", "2.3s"]
    assert "WAIT" in lines[0]


def test_table_shows_what_needed_no_compile():
    cache = {"hits": 5, "misses": 2, "shared": 1, "stored": 2, "uncacheable": {"code": 1}}
    known = {**NATIVE, "id": 4194399, "cache": cache}
    none = {**NATIVE, "cache": dict.fromkeys(cache, 0)}
    heading, *rows = status_table(StatusReport([supervisor_info("me", none, known)]), colour=False, now=NOW)
    assert heading.split()[11:13] == ["HIT%", "SHARED"]
    assert [row.split()[11:13] for row in rows[:2]] == [["-", "-"], ["62%", "1"]]
    (heading, *_) = status_table(StatusReport([supervisor_info("me", none)]), colour=False, now=NOW)
    assert "HIT%" not in heading


def test_only_states_are_coloured():
    report = StatusReport([supervisor_info("me", NATIVE, {**NATIVE, "state": "draining"}, BROKEN)])
    plain = status_table(report, colour=False, now=NOW)
    coloured = status_table(report, colour=True, now=NOW)
    assert "\x1b[32mserving\x1b[0m " in coloured[1]
    assert "\x1b[33mdraining\x1b[0m" in coloured[2]
    assert "\x1b[31mfailed\x1b[0m " in coloured[3]
    for code in ("\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"):
        coloured = [line.replace(code, "") for line in coloured]
    assert coloured == plain


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(environ, coloured):
    out = io.StringIO()
    print_table(StatusReport([supervisor_info("me", NATIVE)]), Console(out, out), environ)
    assert ("\x1b[" in out.getvalue()) is coloured
    assert (terminal_width(environ) > 0) is (environ.get("TERM", "dumb") != "dumb")


@pytest.fixture
def out():
    return io.StringIO()


@pytest.fixture
def reporter(out):
    return TerminalReporter(Console(out, out), width=0)


def test_servers_are_told_of_as_they_come_to_rest(out, reporter):
    reporter.begin(Verb.START, ["native", "4194306"])
    reporter.step({**NATIVE, "state": "starting"})
    reporter.step(BROKEN)
    reporter.step(NATIVE)
    reporter.result(Result(Verb.START, {}, "native", NATIVE))
    reporter.result(Result(Verb.START, {}, "4194306", BROKEN, error="port 80: is for root"))
    reporter.result(Result(Verb.START, {}, "third", None, error="user you does not exist"))
    reporter.finish(1)
    assert out.getvalue().splitlines() == [
        "4194306: starting … FAILED",
        "native: starting … serving on port 5001",
        "stap-server: 4194306: port 80: is for root",
        "third: starting … FAILED",
        "stap-server: third: user you does not exist",
    ]


def test_a_restart_is_one_line(out, reporter):
    reporter.begin(Verb.RESTART, ["native"])
    for verb in (Verb.STOP, Verb.START):
        reporter.result(Result(verb, {}, "native", NATIVE))
    assert out.getvalue() == "native: restarting … serving on port 5001\n"


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (None, ["native: stopping …"]),
        ("is slow", ["native: restarting … FAILED", "stap-server: native: is slow"]),
    ],
)
def test_a_restart_that_got_stuck(out, reporter, error, printed):
    reporter.begin(Verb.RESTART, ["native"])
    reporter.result(Result(Verb.STOP, {}, "native", {**NATIVE, "state": "stopping"}, error=error))
    assert out.getvalue().splitlines() == printed


def test_a_reload_says_what_it_did(out, reporter):
    reporter.begin(Verb.RELOAD, ["the servers of user me"])
    reporter.step({**BROKEN, "state": "stopped"})
    reporter.step(NATIVE)
    reporter.result(Result(Verb.START, {}, "other", {**NATIVE, "id": 9}, already=True))
    assert out.getvalue().splitlines() == [
        "4194306: stopping … stopped",
        "native: starting … serving on port 5001",
        "other: already serving on port 5001",
    ]


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (Result(Verb.STOP, {}, "x", None, already=True), "x: already stopped"),
        (Result(Verb.STOP, {}, "x", None), "x: stopping … done"),
        (Result(Verb.START, {}, "x", {**NATIVE, "state": "starting"}), "x: starting …"),
        (Result(Verb.DRAIN, {}, "x", {**NATIVE, "state": "draining"}), "x: draining … drained"),
        (Result(Verb.UNDRAIN, {}, "x", NATIVE), "x: undraining … serving on port 5001"),
    ],
)
def test_results_without_steps(out, reporter, result, line):
    reporter.begin(result.verb, ["x"])
    reporter.result(result)
    assert out.getvalue() == f"{line}\n"


def test_remarks(out, reporter):
    reporter.remark("No managed stap-server is running", done=True)
    reporter.remark("No stap-server running as pid 9", done=False)
    assert out.getvalue().splitlines() == [
        "No managed stap-server is running",
        "No stap-server running as pid 9: FAILED",
    ]


def test_the_last_line_is_taken_back():
    out = io.StringIO()
    reporter = TerminalReporter(Console(out, out), width=20)
    reporter.begin(Verb.START, ["native", "second", "third"])
    reporter.step({**NATIVE, "state": "starting"})
    reporter.step({**BROKEN, "state": "starting"})
    reporter.step(NATIVE)
    reporter.finish(0)
    reporter.finish(0)
    assert out.getvalue().split("\r\x1b[K") == [
        "",
        "native, second, thi",
        "native: starting …",
        "4194306: starting …",
        "native: starting … serving on port 5001\n",
    ]
