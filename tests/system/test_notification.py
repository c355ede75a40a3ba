"""A daemon's word that it is ready, and all the ways in which it does not come."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from stapsrv.errors import StapsrvError
from stapsrv.system.sd_notify import DaemonEnded, open_notifications

TELL = """
import os, signal, socket, sys
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), "\\0" + os.environ["NOTIFY_SOCKET"][1:])
"""


@pytest.fixture
def notifications():
    with open_notifications() as notifications:
        yield notifications


@pytest.fixture
def spawn(notifications):
    """Start a Python program that can ``tell``; ended for certain."""
    daemons = []

    def start(program: str) -> subprocess.Popen[bytes]:
        environ = os.environ | {"NOTIFY_SOCKET": notifications.address}
        daemons.append(subprocess.Popen([sys.executable, "-c", TELL + textwrap.dedent(program)], env=environ))
        return daemons[-1]

    yield start
    for daemon in daemons:
        # One that was left to itself says that it has ended, and has not.
        if daemon.returncode == 0:
            daemon.returncode = None
        daemon.kill()
        daemon.wait()


def test_readiness_leaves_the_daemon_to_itself(notifications, spawn):
    daemon = spawn("tell('STATUS=coming\\nREADY=1'); signal.pause()")
    notifications.wait_ready(daemon, timeout_s=60)
    assert daemon.returncode == 0
    os.kill(daemon.pid, 0)


@pytest.mark.parametrize(
    ("program", "text", "status"),
    [
        ("tell('STATUS=too late'); tell('STATUS=port 80: no\\nERRNO=1'); sys.exit(1)", "port 80: no", 1),
        ("sys.exit(2)", "stap-serverd ended with status 2", 2),
        ("os.kill(os.getpid(), 9)", "stap-serverd ended with status -9", -9),
        ("tell('nonsense\\xff'); sys.exit(0)", "stap-serverd ended with status 0", 0),
    ],
)
def test_an_end_before_readiness(notifications, spawn, program, text, status):
    with pytest.raises(DaemonEnded) as caught:
        notifications.wait_ready(spawn(program), timeout_s=60)
    assert (str(caught.value), caught.value.status) == (text, status)


def test_a_daemon_that_hangs_is_ended(notifications, spawn):
    daemon = spawn("signal.pause()")
    with pytest.raises(StapsrvError, match=r"^stap-serverd was not ready within 0.2 seconds and was ended$"):
        notifications.wait_ready(daemon, timeout_s=0.2)
    assert daemon.returncode == -signal.SIGKILL


def test_an_interrupted_wait_ends_the_daemon(notifications, spawn, monkeypatch):
    daemon = spawn("signal.pause()")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("select.select", interrupt)
    with pytest.raises(KeyboardInterrupt):
        notifications.wait_ready(daemon, timeout_s=60)
    assert daemon.returncode == -signal.SIGKILL


def test_other_processes_words_do_not_count(notifications, spawn):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"READY=1", "\0" + notifications.address[1:])
    with pytest.raises(DaemonEnded, match="ended with status 3"):
        notifications.wait_ready(spawn("sys.exit(3)"), timeout_s=60)
