"""Process 1: in a process-id namespace of its own, with a child that stands for the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACE = (
    "unshare",
    "--user",
    "--map-current-user",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--",
)

DAEMON = """
import os, signal, subprocess, sys, time
from stapsrv.system.init import fork_as_init
fork_as_init()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
print("pid", os.getpid(), "parent", os.getppid(), flush=True)
"""

pytestmark = pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode != 0,
    reason="this user may make no process-id namespace",
)


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*NAMESPACE, sys.executable, "-c", DAEMON + code],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(code: str) -> tuple[int, str]:
    with start(code) as process:
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_daemon_is_a_child_and_ends_with_its_own_status():
    assert run("sys.exit(7)") == (7, "pid 2 parent 1\n")


def test_status_of_a_killed_daemon_is_128_and_the_signal():
    assert run("os.kill(os.getpid(), signal.SIGKILL)")[0] == 128 + signal.SIGKILL


def test_orphans_are_reaped_and_the_daemon_s_children_are_not():
    code = """
own = subprocess.Popen(["sleep", "0.1"])
orphan = int(subprocess.check_output(["sh", "-c", "sleep 0.05 >/dev/null & echo $!"]))
print("own", own.wait())
while os.path.exists(f"/proc/{orphan}"):
    time.sleep(0.01)  # nothing tells a stranger that a process was waited for
print("left", sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
"""
    status, output = run(code)
    assert (status, output.splitlines()[1:]) == (0, ["own 0", "left [1, 2]"])


def test_signals_are_forwarded():
    with start("signal.sigwait({signal.SIGHUP})\nprint('hangup', flush=True)\nsignal.pause()\n") as unshare:
        assert unshare.stdout.readline() == "pid 2 parent 1\n"
        (init,) = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
        os.kill(int(init), signal.SIGHUP)
        assert unshare.stdout.readline() == "hangup\n"
        os.kill(int(init), signal.SIGTERM)
        unshare.communicate(timeout=60)
    assert unshare.returncode == 128 + signal.SIGTERM


def test_other_processes_do_not_fork():
    code = "import os; from stapsrv.system.init import fork_as_init; before = os.getpid(); fork_as_init(); "
    code += "assert os.getpid() == before"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60, check=True)
