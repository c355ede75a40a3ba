"""Supervisors are started once, ready, and with nothing of their starter's."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import signal
import socket
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from stapsrv.control.client import SupervisorNotRunning, SyncControlClient
from stapsrv.control.client import launch as launching
from stapsrv.control.client.accounts import caller_name, runnable_account
from stapsrv.control.client.launch import LOCK_NAME, Launch, prepare, reach_or_launch
from stapsrv.errors import ControlError, StapsrvError


@pytest.fixture
def environ(tmp_path):
    """The caller's environment; servers' certificates stay out of his home."""
    (tmp_path / "tmp").mkdir()
    own = {"SYSTEMTAP_DIR": f"{tmp_path}/st", "TMPDIR": f"{tmp_path}/tmp"}
    return {**os.environ, **own, "STAP_PR11197_OVERRIDE": "1", "STAPSRV_MDNS": "no"}


@pytest.fixture
def launch(command_line, environ):
    launch = Launch(
        account=runnable_account(caller_name(), environ),
        stat_path=command_line.stat_path,
        log_file=command_line.log,
        config_file=command_line.config_file,
        default_user=caller_name(),
    )
    yield launch
    with contextlib.suppress(OSError, ValueError):
        last = holder(launch)
        os.kill(last, signal.SIGKILL)
        os.waitpid(last, 0)
    # A command ends soon, and leaves them to init; this process lives on.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def holder(launch: Launch) -> int:
    """The process that holds the supervisor's seat, or held it last."""
    return int((launch.supervisor_dir / "lock").read_text())


def reach(launch: Launch) -> SyncControlClient | None:
    try:
        return SyncControlClient(launch.supervisor_dir / "control.sock")
    except SupervisorNotRunning:
        return None


def ask_pid(launch: Launch, environ: dict[str, str]) -> int:
    with reach_or_launch(launch, lambda: reach(launch), environ) as client:
        return client.hello()["pid"]


def test_a_supervisor_that_runs_is_reached(launch, environ):
    assert ask_pid(launch, environ) == ask_pid(launch, environ) == holder(launch)


def test_a_supervisor_has_nothing_of_its_starter_s(launch, environ):
    with socket.socket() as inheritable:
        inheritable.set_inheritable(True)
        inherited = f"socket:[{os.fstat(inheritable.fileno()).st_ino}]"
        pid = ask_pid(launch, environ)
    held = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it lives, and closes what it has done with
            held[path.name] = os.readlink(path)
    assert {held["0"], held["1"], held["2"]} == {"/dev/null"}
    assert inherited not in held.values()
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert "Umask:\t0022" in Path(f"/proc/{pid}/status").read_text()


def test_its_directories(launch, environ):
    ask_pid(launch, environ)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (launch.stat_path, launch.supervisor_dir)}
    assert list(modes.values()) == [0o755, 0o750]
    assert stat.S_IMODE((launch.supervisor_dir / LOCK_NAME).stat().st_mode) == 0o600


def test_two_starts_at_the_same_moment_come_to_one_supervisor(launch, environ):
    pids: list[int] = []
    threads = [threading.Thread(target=lambda: pids.append(ask_pid(launch, environ))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pids == [holder(launch)] * 4


def test_a_socket_that_nobody_listens_to_is_no_obstacle(launch, environ):
    first = ask_pid(launch, environ)
    pidfd = os.pidfd_open(first)
    os.kill(first, signal.SIGKILL)
    # Readable when the process has ended.
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    assert (launch.supervisor_dir / "control.sock").is_socket()
    assert ask_pid(launch, environ) != first


def test_a_supervisor_that_cannot_start_says_why(launch, environ):
    refused = launch._replace(config_file=launch.stat_path / "missing.conf")
    with pytest.raises(StapsrvError) as caught:
        reach_or_launch(refused, lambda: None, environ)
    assert str(caught.value) == (
        f"{launch.stat_path}/missing.conf: no such file; give -c a global configuration file"
    )


def test_a_supervisor_that_never_answers(launch, environ, monkeypatch):
    """One has the seat, and nobody can be reached: that has an end, and each look at the clock is later."""
    prepare(launch)
    lock = os.open(launch.supervisor_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    clock = itertools.count(step=launching._READY_S / 2)
    monkeypatch.setattr(launching, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    with pytest.raises(StapsrvError) as caught:
        reach_or_launch(launch, lambda: None, environ)
    os.close(lock)
    assert str(caught.value) == (
        f"{launch.supervisor_dir}: the supervisor of user {launch.account.name} runs and does not answer;"
        " see its log, or end it"
    )


def test_waiting_for_another_start_has_an_end(launch, environ, monkeypatch):
    prepare(launch)
    lock = os.open(launch.supervisor_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    monkeypatch.setattr(launching, "_LOCK_S", 0.2)
    with pytest.raises(ControlError, match=r"has not done so within 0.2 seconds; try again$"):
        reach_or_launch(launch, lambda: None, environ)
    os.close(lock)


def test_lock_that_is_removed_again_and_again_is_given_up(launch, environ, monkeypatch):
    monkeypatch.setattr(launching, "_LOCK_S", 0.2)
    monkeypatch.setattr(launching, "open_lock", lambda *_arguments: None)
    with pytest.raises(ControlError, match=r"has not done so within 0\.2 seconds"):
        ask_pid(launch, environ)


def test_a_lock_that_died_with_its_holder_is_no_obstacle(launch, environ):
    prepare(launch)
    (launch.supervisor_dir / LOCK_NAME).touch()
    assert ask_pid(launch, environ)
