"""The seat: one supervisor for each user, and nothing in the way of the next one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from stapsrv.errors import ConfigError, LifecycleError
from stapsrv.supervisor.state import lock
from stapsrv.supervisor.state.lock import InstanceLock


@contextlib.contextmanager
def holding(stat_path: Path) -> Iterator[Path]:
    with contextlib.closing(InstanceLock()) as instance:
        instance.hold(stat_path / "me")
        yield stat_path / "me"


def test_directory_is_private(tmp_path):
    with holding(tmp_path / "new") as seat:
        assert seat == tmp_path / "new" / "me"
        assert seat.stat().st_mode & 0o777 == 0o750


def test_second_supervisor_is_refused_and_told_of_the_first(tmp_path):
    with holding(tmp_path):
        with pytest.raises(LifecycleError) as caught, holding(tmp_path):
            pytest.fail("two sit on one seat")
    assert str(caught.value) == (
        f"{tmp_path}/me: a supervisor of user me runs already, as process {os.getpid()}; "
        "command that one with stap-server"
    )


def test_lock_of_a_killed_supervisor_is_free(tmp_path):
    script = "import os,sys,pathlib\nfrom stapsrv.supervisor.state.lock import InstanceLock\n"
    script += "InstanceLock().hold(pathlib.Path(sys.argv[1], 'me')); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    with holding(tmp_path):
        assert (tmp_path / "me" / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_directory_that_others_may_write_is_refused(tmp_path, mode):
    (tmp_path / "me").mkdir()
    (tmp_path / "me").chmod(mode)
    with pytest.raises(ConfigError) as caught, holding(tmp_path):
        pytest.fail("an unsafe directory was taken")
    assert str(caught.value) == (
        f"status directory {tmp_path}/me: belongs to somebody else, or others may write to it; remove it"
    )


def test_link_in_its_place_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "me").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError), holding(tmp_path):
        pytest.fail("a link was followed")


def test_unwritable_status_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"), holding(tmp_path / "file"):
        pytest.fail("a file was taken for a directory")


def test_directory_is_gone_with_the_last_supervisor(tmp_path):
    """SystemTap's own stap-server takes whatever is in STAT_PATH for a server."""
    with holding(tmp_path):
        (tmp_path / "me" / "start.lock").touch()
    assert list(tmp_path.iterdir()) == []


def test_lock_is_held_from_one_run_to_the_next(tmp_path):
    with contextlib.closing(InstanceLock()) as held:
        held.hold(tmp_path / "one" / "me")
        lock_file = tmp_path / "one" / "me" / "lock"
        with lock_file.open() as first:
            held.hold(tmp_path / "one" / "me")
            assert os.path.samestat(os.fstat(first.fileno()), lock_file.stat())
        held.hold(tmp_path / "two" / "me")
        assert (tmp_path / "two" / "me" / "lock").exists()
        assert list((tmp_path / "one").iterdir()) == []
    assert list((tmp_path / "two").iterdir()) == []


def test_lock_that_its_holder_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """It was opened before the holder removed it, and locked after."""
    first = holding(tmp_path)
    first.__enter__()
    flock, ended = lock.fcntl.flock, []

    def flock_late(fd: int, operation: int) -> None:
        if not ended:
            ended.append(True)
            first.__exit__(None, None, None)
        flock(fd, operation)

    monkeypatch.setattr(lock, "fcntl", SimpleNamespace(**{**vars(lock.fcntl), "flock": flock_late}))
    with holding(tmp_path):
        with pytest.raises(LifecycleError), holding(tmp_path):
            pytest.fail("two supervisors")
        assert (tmp_path / "me" / "lock").exists()
