"""What a command does to supervisors, and what it prints: whole flows, with a supervisor that obeys."""

from __future__ import annotations

import os

import pytest
from kit.supervisor import lines

from stapsrv.config.kernels import host_release


def test_start_of_specified_servers(command_line, supervisor, title):
    ran = command_line.run("start", "-r", "5.10", "--port", 7001, "-n", "new")
    assert ran.out == lines(f"Starting {title('5.10', 'new', 7001)}", "OK")
    assert (ran.status, ran.err) == (0, "")
    assert supervisor.told_names == [("start", ["new"])]


def test_start_of_one_that_runs_changes_nothing(command_line, hosting, title):
    ran = command_line.run("start", "-r", "6.1")
    assert (ran.status, ran.out) == (0, lines(f"Starting {title('6.1')}", "OK"))
    assert len(hosting.servers) == 2


def test_start_that_fails_says_why(command_line, supervisor, title):
    supervisor.errors["x"] = "port 7001: is in use by another program; give a free one"
    ran = command_line.run("start", "-r", "5.10", "-n", "x")
    assert ran.out == lines(f"Starting {title('5.10', nickname='x')}", "FAILED")
    assert ran.err == "stap-server: x: port 7001: is in use by another program; give a free one\n"
    assert ran.status == 1


def test_start_of_configured_servers_starts_the_good_and_tells_of_the_bad(command_line, supervisor, title):
    command_line.configure(a="RELEASE=5.10\nNICKNAME=one\n", b="PORT=abc\n", c="RELEASE=6.1\n")
    ran = command_line.run("start")
    assert ran.status == 1
    assert ran.out == lines(
        f"Starting {title('5.10', nickname='one')}", "OK", f"Starting {title('6.1')}", "OK"
    )
    bad = command_line.directory / "conf.d" / "b.conf"
    assert ran.err.startswith(f"stap-server: {bad}:1: PORT=abc: expected a port number")
    assert ran.err.count("\n") == 1
    origins = [server.origin for server in supervisor.servers.values()]
    assert origins == [str(command_line.directory / "conf.d" / name) for name in ("a.conf", "c.conf")]


@pytest.mark.parametrize("action", ["start", "restart"])
def test_bad_files_alone_make_no_default_server(command_line, supervisor, action):
    command_line.configure(bad="PORT=abc\n")
    ran = command_line.run(action)
    assert (ran.status, supervisor.told) == (1, [])
    assert "Starting" not in ran.out
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told", "status"),
    [
        (["stop"], [("stop", [4194305, 4194306])], 0),
        (["stop", "-n", "web"], [("stop", [4194305])], 0),
        (["stop", "-p", "4194306"], [("stop", [4194306])], 0),
        (["stop", "-r", "9.9"], [], 0),
        (["restart"], [("restart", [4194305, 4194306])], 0),
        (["condrestart", "-n", "web"], [("restart", [4194305])], 0),
        (["condrestart", "-r", "9.9"], [], 0),
        (["drain", "-n", "web"], [("drain", [4194305])], 0),
        (["drain", "-r", "9.9"], [], 1),
        (["undrain"], [("undrain", [4194305, 4194306])], 0),
        (["force-reload"], [("reload", True), ("start", [host_release()])], 0),
        (["reload"], [("reload", False)], 0),
        (["force-reload", "-r", "6.1"], [("stop", [4194305]), ("restart", [4194306])], 0),
        (["force-reload", "-r", "9.9"], [("stop", [4194305, 4194306]), ("start", ["9.9"])], 0),
        (["force-reload", "-r", "6.1", "-k"], [("stop", [4194305, 4194306]), ("start", ["6.1"])], 0),
        (["restart", "-n", "web", "-k"], [("stop", [4194305]), ("start", ["web"])], 0),
        (["ctl", "start", "-r", "9.9"], [("start", ["9.9"])], 0),
    ],
)
def test_what_a_supervisor_is_told(command_line, hosting, words, told, status):
    ran = command_line.run(*words)
    assert (ran.status, ran.err) == (status, "")
    assert [(method, what[1] if method == "reload" else what) for method, what in hosting.told_names] == told


@pytest.mark.parametrize(
    ("words", "out", "status"),
    [
        (["stop"], ["Stopping stap-server: OK"], 0),
        (["condrestart"], ["No managed stap-server is running", "OK"], 0),
        (["try-restart"], ["No managed stap-server is running", "OK"], 0),
        (["drain"], ["No managed stap-server is running", "OK"], 0),
        (["stop", "-n", "x"], ["No configuration found for the nickname 'x'", "FAILED"], 1),
        (["condrestart", "-n", "x"], ["No configuration found for the nickname 'x'", "FAILED"], 1),
        (["stop", "-p", "abc"], ["No stap-server running as pid abc", "FAILED"], 1),
        (["start", "-p", "1"], ["No stap-server running as pid 1", "FAILED"], 1),
        (["ctl", "stop"], ["Stopping stap-server: OK"], 0),
        (["ctl", "condrestart"], ["No managed stap-server is running", "OK"], 0),
    ],
)
def test_where_nothing_runs(command_line, words, out, status):
    ran = command_line.run(*words)
    assert (ran.out, ran.err, ran.status) == (lines(*out), "", status)


def test_stop_of_a_server_that_does_not_run_succeeds(command_line, title):
    ran = command_line.run("stop", "-r", "9.9")
    assert (ran.out, ran.err, ran.status) == (lines(f"Stopping {title('9.9')}", "OK"), "", 0)


def test_condrestart_of_a_server_that_does_not_run_starts_none(command_line, title):
    ran = command_line.run("condrestart", "-r", "9.9")
    assert (ran.out, ran.status) == (lines(f"{title('9.9')} is not running", "OK"), 0)


def test_drain_of_a_server_that_does_not_run_fails(command_line, title):
    ran = command_line.run("drain", "-r", "9.9")
    assert (ran.out, ran.status) == (lines(f"{title('9.9')} is not running", "FAILED"), 1)


def test_restart_without_servers_is_a_start(command_line, supervisor, title):
    command_line.configure(a="RELEASE=5.10\n")
    ran = command_line.run("restart")
    assert ran.out == lines("Stopping stap-server: OK", f"Starting {title('5.10')}", "OK")


def test_nobody_starts_servers_as_somebody_else(command_line, supervisor):
    if os.geteuid() == 0:
        pytest.skip("root may")
    ran = command_line.run("start", "-r", "5.10", "-u", "daemon")
    assert (ran.status, ran.out.splitlines()[-1], supervisor.told) == (1, "FAILED", [])
    assert ran.err.startswith("stap-server: 5.10: user ")
    assert " cannot run servers as user daemon; " in ran.err


def test_wrong_users_of_files_are_told_with_file_and_line(command_line, supervisor):
    command_line.configure(a="RELEASE=5.10\n\nUSER=ghost-of-nobody\n", b="RELEASE=6.1\nUSER=root\n")
    ran = command_line.run("start")
    a, b = (command_line.directory / "conf.d" / name for name in ("a.conf", "b.conf"))
    assert ran.status == 1
    assert f"stap-server: a.conf: {a}:3: user 'ghost-of-nobody' does not exist; " in ran.err
    assert f"stap-server: b.conf: {b}:2: no compile server runs as root; " in ran.err


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (["--port", 7001, "--port", 7002], "--port 7002 applies to no server"),
    ],
)
def test_warnings_change_nothing(command_line, supervisor, words, warning):
    ran = command_line.run("start", "-r", "5.10", *words)
    assert (ran.status, ran.err) == (0, f"stap-server: warning: {warning}\n")


def test_a_person_sees_each_server_s_way(command_line, hosting):
    environ = {"TERM": "dumb"}
    started = command_line.run("start", "-r", "9.9", "-n", "new", terminal=True, environ=environ)
    assert started.out == "new: starting … serving on port 40000\n"
    again = command_line.run("start", "-n", "new", terminal=True, environ=environ)
    assert again.out == "new: already serving on port 40000\n"
    restarted = command_line.run("restart", "-n", "web", terminal=True, environ=environ)
    assert restarted.out == "web: restarting … serving on port 7001\n"
    drained = command_line.run("drain", "-n", "web", terminal=True, environ=environ)
    assert drained.out == "web: draining … drained\n"
    stopped = command_line.run("stop", "-n", "web", terminal=True, environ=environ)
    assert stopped.out == "web: stopping … stopped\n"
    hosting.errors["bad"] = "port 80: is for root"
    failed = command_line.run("start", "-n", "bad", terminal=True, environ=environ)
    assert (failed.out, failed.err) == (
        "bad: starting … FAILED\n",
        "stap-server: bad: port 80: is for root\n",
    )
