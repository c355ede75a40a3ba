"""sd_notify(3) against real datagram sockets: the daemon's reports, and every way in which none comes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap

import anyio
import anyio.to_thread
import pytest

from stapsrv.errors import StapsrvError
from stapsrv.system.sd_notify import DaemonEnded, Notifier, feed_watchdog, open_notifications


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    address = f"{tmp_path}/notify" if request.param == "path" else f"@stapsrv-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0"))
        receiver.settimeout(60)
        yield receiver, Notifier({"NOTIFY_SOCKET": address})


def test_reports_are_lines_of_one_message(manager):
    receiver, notifier = manager
    notifier.ready("serving on [::]:5001")
    notifier.stopping()
    notifier.failed("first\nsecond")
    assert [receiver.recv(4096) for _ in range(3)] == [
        b"READY=1\nSTATUS=serving on [::]:5001",
        b"STOPPING=1",
        b"STATUS=first second\nERRNO=1",
    ]


def test_text_that_is_not_utf8_is_escaped(manager):
    receiver, notifier = manager
    notifier.failed("log \udcff cannot be written")
    assert receiver.recv(4096) == b"STATUS=log \\udcff cannot be written\nERRNO=1"


def test_without_a_manager_nothing_happens(tmp_path):
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": f"{tmp_path}/nobody"}).ready("x")


@pytest.mark.anyio
class TestWatchdog:
    async def test_is_fed_as_often_as_wanted(self, manager):
        receiver, notifier = manager
        async with anyio.create_task_group() as tasks:
            environ = {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}
            tasks.start_soon(feed_watchdog, notifier, environ)
            for _ in range(3):
                assert await anyio.to_thread.run_sync(receiver.recv, 4096) == b"WATCHDOG=1"
            tasks.cancel_scope.cancel()

    @pytest.mark.parametrize(
        "environ",
        [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}],
    )
    async def test_is_not_fed_where_it_is_not_wanted(self, manager, environ):
        receiver, notifier = manager
        await feed_watchdog(notifier, environ)
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(4096)


TELL = """
import os, signal, socket, sys
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), "\\0" + os.environ["NOTIFY_SOCKET"][1:])
"""


@pytest.fixture
def notifications():
    with open_notifications("exampled") as notifications:
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


def test_ready_daemon_is_left_to_itself(notifications, spawn):
    daemon = spawn("tell('STATUS=coming\\nREADY=1'); signal.pause()")
    notifications.wait_ready(daemon, timeout_s=60)
    assert daemon.returncode == 0
    os.kill(daemon.pid, 0)


@pytest.mark.parametrize(
    ("program", "text", "status"),
    [
        ("tell('STATUS=too late'); tell('STATUS=port 80: no\\nERRNO=1'); sys.exit(1)", "port 80: no", 1),
        ("sys.exit(2)", "exampled ended with status 2", 2),
        ("os.kill(os.getpid(), 9)", "exampled ended with status -9", -9),
        ("tell('nonsense\\xff'); sys.exit(0)", "exampled ended with status 0", 0),
    ],
)
def test_end_before_ready_is_an_error_with_the_reason(notifications, spawn, program, text, status):
    with pytest.raises(DaemonEnded) as caught:
        notifications.wait_ready(spawn(program), timeout_s=60)
    assert (str(caught.value), caught.value.status) == (text, status)


def test_daemon_that_is_not_ready_in_time_is_killed(notifications, spawn):
    daemon = spawn("signal.pause()")
    with pytest.raises(StapsrvError, match=r"^exampled was not ready within 0.2 seconds and was ended$"):
        notifications.wait_ready(daemon, timeout_s=0.2)
    assert daemon.returncode == -signal.SIGKILL


def test_interrupted_wait_kills_the_daemon(notifications, spawn, monkeypatch):
    daemon = spawn("signal.pause()")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("select.select", interrupt)
    with pytest.raises(KeyboardInterrupt):
        notifications.wait_ready(daemon, timeout_s=60)
    assert daemon.returncode == -signal.SIGKILL


def test_messages_of_other_processes_are_ignored(notifications, spawn):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"READY=1", "\0" + notifications.address[1:])
    with pytest.raises(DaemonEnded, match="ended with status 3"):
        notifications.wait_ready(spawn("sys.exit(3)"), timeout_s=60)
