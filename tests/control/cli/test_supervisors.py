"""Supervisors that are started, asked again, or gone; and the password that a new one gets."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from kit.supervisor import Fault, lines

from stapsrv.control.cli import supervisors

PROGRAM = "from stapsrv.control.cli.main import main; main()"


@pytest.fixture
def environ(tmp_path) -> dict[str, str]:
    config = tmp_path / "global.conf"
    config.write_text(f"CONFIG_PATH={tmp_path}/conf.d\nSTAT_PATH={tmp_path}/stat\nLOG_FILE={tmp_path}/log\n")
    return {**os.environ, "SYSTEMTAP_DIR": f"{tmp_path}/systemtap", "TMPDIR": str(tmp_path)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root's servers are another user's, who has no access here")
def test_password_typed_on_the_terminal_protects_the_key(tmp_path, environ, build_tree):
    options = ["-c", f"{tmp_path}/global.conf"]
    server = ["-r", str(build_tree), "--ssl", f"{tmp_path}/ssl", "-n", "one"]
    child, terminal = pty.fork()
    if not child:
        os.execve(sys.executable, [sys.executable, "-c", PROGRAM, "start", "-P", *options, *server], environ)
    shown = b""
    while b"database: " not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, b"correct horse\n")
    try:
        while more := os.read(terminal, 1024):
            shown += more
    except OSError:  # how Linux says that nobody holds the other end any more
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown
    assert b"correct" not in shown
    (pid,) = (path.read_text().strip() for path in tmp_path.glob("stat/*/lock"))
    assert b"correct" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    stopped = subprocess.run(
        [sys.executable, "-c", PROGRAM, "stop", *options], env=environ, capture_output=True, check=False
    )
    assert stopped.returncode == 0
    again = subprocess.run(
        [sys.executable, "-c", PROGRAM, "start", *options, *server],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert "the database is protected by a password; give its password (-P)" in again.stderr


def test_ctl_starts_no_supervisor(command_line, user, title):
    ran = command_line.run("ctl", "start", "-r", "5.10", "-n", "x")
    assert ran.out == lines(f"Starting {title('5.10', nickname='x')}", "FAILED")
    assert ran.err == (
        f"stap-server: x: no supervisor of user {user} runs, and ctl starts none;"
        " leave ctl out, or start the service\n"
    )
    assert ran.status == 1
    assert not command_line.stat_path.exists()


def test_a_supervisor_that_hung_up_is_asked_once_more(command_line, supervisor, title):
    supervisor.faults = [Fault.HANG_UP]
    ran = command_line.run("start", "-r", "5.10", "-n", "x")
    assert (ran.status, ran.err, supervisor.told_names) == (0, "", [("start", ["x"])])
    supervisor.faults = [Fault.HANG_UP, Fault.HANG_UP]
    ran = command_line.run("start", "-r", "6.1", "-n", "y")
    assert ran.status == 1
    assert (
        ran.err
        == "stap-server: y: start: the connection ended before the supervisor's answer (it was closed)\n"
    )


@pytest.mark.parametrize("fault", [Fault.VANISH, Fault.SHUT_DOWN])
def test_servers_of_a_supervisor_that_ends_have_stopped(command_line, hosting, fault, monkeypatch):
    monkeypatch.setattr(supervisors, "_VANISH_S", 60.0)
    hosting.faults = [fault]
    ran = command_line.run("stop", "-n", "web")
    assert (ran.status, ran.err, ran.out.splitlines()[-1]) == (0, "", "OK")


def test_a_supervisor_that_hung_up_and_lives_did_not_stop_anything(command_line, hosting, monkeypatch):
    monkeypatch.setattr(supervisors, "_VANISH_S", 0.2)
    hosting.faults = [Fault.HANG_UP]
    ran = command_line.run("stop", "-n", "web")
    assert (ran.status, ran.out.splitlines()[-1]) == (1, "FAILED")
    assert ran.err.startswith("stap-server: web: stop: the connection ended before the supervisor's answer")


def test_no_wait_is_content_with_what_is_under_way(command_line, supervisor):
    supervisor.gate = anyio.Event()
    waiting = command_line.run("start", "-r", "5.10", "--timeout", 0.2)
    assert (waiting.status, waiting.out.splitlines()[-1]) == (1, "FAILED")
    assert waiting.err == "stap-server: 5.10: is still starting after 0.2 s\n"
    begun = command_line.run("start", "-r", "6.1", "--no-wait")
    assert (begun.status, begun.out.splitlines()[-1], begun.err) == (0, "OK", "")
