"""What a command does to supervisors, and what it prints: whole flows, with a supervisor that obeys."""

from __future__ import annotations

import json
import os

import pytest
from kit.supervisor import FakeSupervisor, listening, server_info, shutting_down

from stapsrv.config.kernels import host_arch

ARCH = host_arch()


@pytest.fixture
def title(command_line, user):
    """What a server is called in the original's lines."""

    def called(release: str, nickname: str | None = None, port: int | None = None) -> str:
        name = "" if nickname is None else f' -n "{nickname}"'
        listens = "" if port is None else f' --port "{port}"'
        return f'stap-server -a "{ARCH}" -r "{release}" -u "{user}"{name} --log "{command_line.log}"{listens}'

    return called


@pytest.fixture
def settings(command_line, user):
    """What a supervisor has on record for a server."""

    def recorded(release: str, **others: object) -> dict[str, object]:
        base = {"ARCH": ARCH, "RELEASE": [release], "USER": user, "LOG": str(command_line.log)}
        return {**base, **others}

    return recorded


@pytest.fixture
def supervisor(command_line, user):
    with listening(FakeSupervisor(user), command_line.stat_path) as supervisor:
        yield supervisor


@pytest.fixture
def hosting(supervisor, settings):
    """The supervisor, with two servers: ``web``, and one without a nickname."""
    web = server_info(4194305, settings=settings("5.10", NICKNAME="web", PORT=7001))
    plain = server_info(4194306, settings=settings("6.1"))
    supervisor.servers = {4194305: web, 4194306: plain}
    supervisor.next_id = 4194307
    return supervisor


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


def test_start_of_specified_servers(command_line, supervisor, title):
    ran = command_line.run("start", "-r", "5.10", "--port", 7001, "-n", "new")
    assert ran.out == lines(f"Starting {title('5.10', 'new', 7001)}", "OK")
    assert (ran.status, ran.err) == (0, "")
    assert supervisor.told == [("start", ["new"])]


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
    origins = [server["origin"] for server in supervisor.servers.values()]
    assert origins == [str(command_line.directory / "conf.d" / name) for name in ("a.conf", "c.conf")]


@pytest.mark.parametrize("action", ["start", "restart"])
def test_bad_files_alone_make_no_default_server(command_line, supervisor, action):
    command_line.configure(bad="PORT=abc\n")
    ran = command_line.run(action)
    assert (ran.status, supervisor.told) == (1, [])
    assert "Starting" not in ran.out
    assert ran.err.count("\n") == 1


def test_a_nickname_in_a_bad_file_makes_no_new_server(command_line, supervisor):
    command_line.configure(native="NICKNAME=native\nPORT=abc\n")
    ran = command_line.run("start", "-n", "native", "-n", "other")
    assert ran.status == 1
    assert "native: " in ran.err
    assert "PORT=abc" in ran.err
    assert supervisor.told == [("start", ["other"])]


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
        (["force-reload"], [("reload", True)], 0),
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
    assert [(method, what[1] if method == "reload" else what) for method, what in hosting.told] == told


def test_stop_prints_each_server(command_line, hosting, title):
    ran = command_line.run("stop")
    assert ran.out == lines(
        f"Stopping {title('5.10', 'web', 7001)}",
        "OK",
        f"Stopping {title('6.1', nickname='4194306')}",
        "OK",
    )


def test_restart_prints_both_halves(command_line, hosting, title):
    web = title("5.10", "web", 7001)
    ran = command_line.run("restart", "-n", "web")
    assert ran.out == lines(f"Stopping {web}", "OK", f"Starting {web}", "OK")


def test_restart_that_fails_did_stop(command_line, hosting, title):
    hosting.errors["web"] = "certificate database /nss: is locked"
    web = title("5.10", "web", 7001)
    ran = command_line.run("restart", "-n", "web")
    assert ran.out == lines(f"Stopping {web}", "OK", f"Starting {web}", "FAILED")
    assert (ran.status, ran.err) == (1, "stap-server: web: certificate database /nss: is locked\n")


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


def test_ctl_starts_no_supervisor(command_line, user, title):
    ran = command_line.run("ctl", "start", "-r", "5.10", "-n", "x")
    assert ran.out == lines(f"Starting {title('5.10', nickname='x')}", "FAILED")
    assert ran.err == (
        f"stap-server: x: no supervisor of user {user} runs, and ctl starts none;"
        " leave ctl out, or start the service\n"
    )
    assert ran.status == 1
    assert not command_line.stat_path.exists()


def test_reload_prints_what_became_of_each(command_line, hosting, title):
    web, plain = hosting.servers.values()
    gone = {**web, "state": "stopped", "wanted": "down"}
    broken = {**server_info(9, settings={"NICKNAME": "new"}), "state": "failed"}
    hosting.reloaded = [
        {"server": gone, "already": False, "error": None},
        {"server": plain, "already": True, "error": None},
        {"server": broken, "already": False, "error": "port 80: not permitted"},
        {"server": None, "already": False, "error": "b.conf:1: unknown variable 'X'"},
    ]
    ran = command_line.run("force-reload")
    assert ran.status == 1
    assert ran.out == lines(
        f"Stopping {title('5.10', 'web', 7001)}",
        "OK",
        f"Starting {title('6.1')}",
        "OK",
        'Starting stap-server -n "new"',
        "FAILED",
    )
    assert ran.err == lines(
        "stap-server: new: port 80: not permitted", "stap-server: b.conf:1: unknown variable 'X'"
    )
    assert hosting.told == [("reload", (str(command_line.config_file), True))]


def test_bad_files_are_told_of_once_by_a_reload(command_line, hosting):
    command_line.configure(bad="nonsense\n")
    bad = command_line.directory / "conf.d" / "bad.conf"
    fault = f"{bad}:1: expected VARIABLE=VALUE, found 'nonsense'; begin comments with '#' and leave no blank"
    hosting.reloaded = [{"server": None, "already": False, "error": f"{fault} before the '='"}]
    ran = command_line.run("reload")
    assert (ran.status, ran.err) == (1, f"stap-server: {fault} before the '='\n")


def test_a_supervisor_that_hung_up_is_asked_once_more(command_line, supervisor, title):
    supervisor.refusals = [None]
    ran = command_line.run("start", "-r", "5.10", "-n", "x")
    assert (ran.status, ran.err, supervisor.told) == (0, "", [("start", ["x"])])
    supervisor.refusals = [None, None]
    ran = command_line.run("start", "-r", "6.1", "-n", "y")
    assert ran.status == 1
    assert (
        ran.err
        == "stap-server: y: start: the connection ended before the supervisor's answer (it was closed)\n"
    )


@pytest.mark.parametrize("refusal", [None, shutting_down()])
def test_servers_of_a_supervisor_that_ends_have_stopped(command_line, hosting, refusal):
    hosting.refusals, hosting.leaves = [refusal], True
    ran = command_line.run("stop", "-n", "web")
    assert (ran.status, ran.err, ran.out.splitlines()[-1]) == (0, "", "OK")


def test_a_supervisor_that_hung_up_and_lives_did_not_stop_anything(command_line, hosting):
    hosting.refusals = [None]
    ran = command_line.run("stop", "-n", "web")
    assert (ran.status, ran.out.splitlines()[-1]) == (1, "FAILED")
    assert ran.err.startswith("stap-server: web: stop: the connection ended before the supervisor's answer")


def test_other_users_servers_are_left_alone(command_line, user, title):
    if os.geteuid() == 0:
        pytest.skip("root may command everybody's")
    theirs = server_info(4194305, settings={"NICKNAME": "web", "USER": "nobody"})
    with listening(FakeSupervisor("nobody", theirs), command_line.stat_path) as supervisor:
        named = command_line.run("stop", "-n", "web")
        everything = command_line.run("stop")
        assert supervisor.told == []
    assert named.status == 1
    assert named.out.splitlines()[-1] == "FAILED"
    assert named.err == (
        "stap-server: web: is a server of user nobody; run stap-server as that user, or as root\n"
    )
    assert (everything.status, everything.out) == (0, "Stopping stap-server: OK\n")


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


def test_no_wait_is_content_with_what_is_under_way(command_line, supervisor, settings):
    slow = server_info(1, settings=settings("5.10"), state="starting")
    supervisor._start = lambda params, tell: [
        {"server": slow, "already": False, "error": "is still starting after 0 s"}
    ]
    waiting = command_line.run("start", "-r", "5.10", "--timeout", 1)
    assert (waiting.status, waiting.out.splitlines()[-1]) == (1, "FAILED")
    assert waiting.err == "stap-server: 5.10: is still starting after 0 s\n"
    begun = command_line.run("start", "-r", "5.10", "--no-wait")
    assert (begun.status, begun.out.splitlines()[-1], begun.err) == (0, "OK", "")


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
