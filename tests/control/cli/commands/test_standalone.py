"""``stap-start-server`` and ``stap-stop-server`` as their users call them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

START, STOP = "start_server", "stop_server"


def call(command: str, *arguments: object, env=None, cwd=None) -> subprocess.CompletedProcess[str]:
    """Call a console script's function; returns when its outputs reach end of file, as its users do."""
    program = [
        sys.executable,
        "-c",
        f"from stapsrv.control.cli.commands.standalone import *; sys.exit({command}())",
    ]
    return subprocess.run(
        [*program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
        cwd=cwd,
    )


@pytest.fixture
def environ(tmp_path):
    (tmp_path / "tmp").mkdir()
    private = {"SYSTEMTAP_DIR": f"{tmp_path}/st", "TMPDIR": f"{tmp_path}/tmp", "STAP_PR11197_OVERRIDE": "1"}
    return os.environ | private


@pytest.fixture
def server(tmp_path, environ, build_tree, identity):
    """Start a server; yields its process id."""
    log = tmp_path / "log"
    started = call(START, "-r", build_tree, "--ssl", identity, "--log", log, env=environ)
    assert (started.returncode, started.stderr) == (0, "")
    pid = int(started.stdout)
    assert started.stdout == f"{pid}\n"
    yield pid
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_started_server_accepts_already(server, tmp_path):
    lines = (tmp_path / "log").read_text()
    assert f"compile server pid {server} starting" in lines
    assert "Using network address [::]:" in lines


def test_started_server_holds_nothing_of_its_starter(server):
    held = {os.readlink(f"/proc/{server}/fd/{number}") for number in (0, 1, 2)}
    assert held == {"/dev/null"}
    assert os.getsid(server) == server


def test_stop_ends_it(server, environ, tmp_path):
    pidfd = os.pidfd_open(server)
    stopped = call(STOP, server, env=environ)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "")
    assert select.select([pidfd], [], [], 0)[0], "the server's process is still there"
    os.close(pidfd)
    assert list((tmp_path / "tmp").iterdir()) == []
    again = call(STOP, server, env=environ)
    assert (again.returncode, again.stderr) == (
        1,
        f"stap-stop-server: {server} is not a systemtap server\n",
    )


@pytest.mark.parametrize("pid", ["1", pytest.param(str(os.getpid()), id="own"), "0", "-1", "x", "", "9" * 20])
def test_stop_of_no_server(pid):
    stopped = call(STOP, pid)
    assert (stopped.returncode, stopped.stderr) == (1, f"stap-stop-server: {pid} is not a systemtap server\n")


@pytest.mark.parametrize("arguments", [[], ["1", "2"]])
def test_stop_without_a_pid(arguments):
    stopped = call(STOP, *arguments)
    assert (stopped.returncode, stopped.stderr) == (
        2,
        "stap-stop-server: one process id is needed; usage: stap-stop-server PID\n",
    )


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--bad"], 2, "stap-start-server: unknown option '--bad'; did you mean --backend?\n"),
        (["-r", "/missing"], 1, "stap-start-server: -r /missing: no kernel release in /missing/include"),
    ],
)
def test_failed_start_says_the_server_s_own_reason(environ, tmp_path, arguments, status, text):
    started = call(START, *arguments, env=environ)
    assert (started.returncode, started.stdout) == (status, "")
    assert started.stderr.startswith(text)
    assert started.stderr.count("\n") == 1
    assert list((tmp_path / "tmp").iterdir()) == []


def test_taken_port(server, environ, build_tree, identity, tmp_path):
    port = (tmp_path / "log").read_text().rpartition("[::]:")[2].split()[0]
    started = call(START, "-r", build_tree, "--ssl", identity, "--port", port, env=environ)
    assert (started.returncode, started.stderr) == (
        1,
        f"stap-start-server: port {port}: is in use by another program; "
        "give a free one, or 0 for any, with --port\n",
    )


def test_server_that_dies_at_once(environ, tmp_path):
    """A start that ends without a word still gives a reason."""
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ.get('NOTIFY_SOCKET') and os._exit(9)")
    started = call(START, env=environ | {"PYTHONPATH": str(tmp_path)}, cwd=Path("/"))
    assert (started.returncode, started.stderr) == (
        1,
        "stap-start-server: stap-serverd ended with status 9\n",
    )
