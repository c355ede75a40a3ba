"""Temporary directories: private, removed with their owner, or by the next one after a kill."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit.trees import make_deep

from stapsrv.compile.engine.tmpfs import Tmpfs
from stapsrv.compile.engine.workspace import Workspace, sweep
from stapsrv.errors import ConfigError
from stapsrv.system import trees
from stapsrv.system.trees import remove


@pytest.fixture
def workspace(tmp_path: Path):
    made = Workspace.open(tmp_path)
    yield made
    made.close()


def test_directories_are_private(workspace):
    request = workspace.make_request_directory()
    assert [path.stat().st_mode & 0o777 for path in (workspace.path, request)] == [0o700, 0o700]
    assert workspace.path.name.startswith("stap-server.")


def test_close_removes_everything(tmp_path):
    workspace = Workspace.open(tmp_path)
    (workspace.make_request_directory() / "file").write_text("x")
    workspace.close()
    assert list(tmp_path.iterdir()) == []


def test_close_removes_what_a_dying_process_makes_meanwhile(tmp_path, monkeypatch):
    workspace = Workspace.open(tmp_path)
    path = workspace.make_request_directory()

    def remove_beside_a_process(below: Path) -> bool:
        monkeypatch.undo()
        (path / "late").touch()
        return False

    monkeypatch.setattr(trees, "remove", remove_beside_a_process)
    workspace.close()
    assert list(tmp_path.iterdir()) == []


def test_remove_removes_unreadable_directories(workspace):
    request = workspace.make_request_directory()
    (request / "sealed" / "deeper").mkdir(parents=True)
    (request / "sealed" / "deeper" / "file").write_text("x")
    (request / "sealed" / "deeper").chmod(0)
    (request / "sealed").chmod(0)
    workspace.remove(request)
    assert not request.exists()


def test_remove_follows_no_link(workspace, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    request = workspace.make_request_directory()
    (request / "link").symlink_to(precious)
    workspace.remove(request)
    assert (precious / "file").exists()


def test_deep_directories_end_neither_remove_nor_close_nor_sweep(tmp_path):
    workspace = Workspace.open(tmp_path)
    request = workspace.make_request_directory()
    make_deep(request)
    workspace.remove(request)
    assert not request.exists()
    make_deep(workspace.make_request_directory())
    workspace.close()
    assert list(tmp_path.iterdir()) == []
    dead = tmp_path / "stap-server.dead"
    (dead / "request.x").mkdir(parents=True)
    (dead / "lock").touch()
    make_deep(dead / "request.x")
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_is_swept_later(tmp_path, monkeypatch):
    workspace = Workspace.open(tmp_path)
    request = workspace.make_request_directory()
    with monkeypatch.context() as patched:
        patched.setattr(trees, "remove", lambda path: path != request and remove(path))
        workspace.close()
        sweep(tmp_path)
    assert request.exists()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_directory_that_no_thread_could_remove_goes_with_the_next(workspace, monkeypatch):
    with monkeypatch.context() as patched:
        async with workspace.request_directory(keep=False) as first:
            patched.setattr(workspace.files, "max_abandoned", 0)
    assert first.exists()
    async with workspace.request_directory(keep=False):
        pass
    assert [path.name for path in workspace.path.iterdir()] == ["lock"]


def test_failed_removal_is_repeated_with_the_next(workspace, monkeypatch):
    """Without a free descriptor nothing can be removed."""
    first, second = workspace.make_request_directory(), workspace.make_request_directory()
    with monkeypatch.context() as patched:
        patched.setattr("stapsrv.system.trees.remove", lambda _path: False)
        workspace.remove(first)
    assert first.exists()
    workspace.remove(second)
    assert [path.name for path in workspace.path.iterdir()] == ["lock"]


def test_kept_directory_outlives_workspace_and_sweep(tmp_path):
    workspace = Workspace.open(tmp_path)
    kept = workspace.make_request_directory(keep=True)
    (kept / "file").write_text("x")
    workspace.close()
    sweep(tmp_path)
    assert (kept / "file").read_text() == "x"


def test_sweep_spares_locked_and_foreign_directories(workspace, tmp_path):
    (tmp_path / "stap-server.original").mkdir()
    (tmp_path / "other").mkdir()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "stap-server.original",
        "other",
        workspace.path.name,
    }


def test_opening_removes_directories_of_killed_processes(tmp_path):
    script = "import os,sys,pathlib\nfrom stapsrv.compile.engine.workspace import Workspace\n"
    script += "Workspace.open(pathlib.Path(sys.argv[1])).make_request_directory(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob("stap-server.*/request.*"))) == 1
    workspace = Workspace.open(tmp_path)
    assert list(tmp_path.iterdir()) == [workspace.path]
    workspace.close()


def test_sweep_follows_no_link_to_a_lock(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").touch()
    (tmp_path / "stap-server.evil").mkdir()
    (tmp_path / "stap-server.evil" / "lock").symlink_to(tmp_path / "elsewhere" / "lock")
    sweep(tmp_path)
    assert (tmp_path / "stap-server.evil" / "lock").is_symlink()
    assert (tmp_path / "elsewhere" / "lock").exists()


def test_sweep_removes_old_directories_that_were_never_finished(tmp_path):
    for name in (".stap-server.one", ".stap-server.two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    now = time.time()
    (tmp_path / ".stap-server.empty").mkdir()
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("time.time", lambda: now + 61)
        sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_directory_that_was_removed_is_made_again(tmp_path):
    before = os.listdir("/proc/self/fd")
    workspace = Workspace.open(tmp_path)
    former = workspace.path
    shutil.rmtree(former)
    request = workspace.make_request_directory()
    assert request.parent == workspace.path != former
    assert [path.stat().st_mode & 0o777 for path in (workspace.path, request)] == [0o700, 0o700]
    sweep(tmp_path)
    assert request.exists()
    workspace.remove(request)
    workspace.close()
    assert list(tmp_path.iterdir()) == []
    assert os.listdir("/proc/self/fd") == before


def test_request_directory_fails_until_the_parent_is_back(tmp_path):
    parent = tmp_path / "tmp"
    parent.mkdir()
    workspace = Workspace.open(parent)
    shutil.rmtree(parent)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            workspace.make_request_directory()
    parent.mkdir()
    assert workspace.make_request_directory().is_dir()
    workspace.close()
    assert list(parent.iterdir()) == []


def test_removed_directory_is_made_again_once_by_many_threads(tmp_path):
    workspace = Workspace.open(tmp_path)
    shutil.rmtree(workspace.path)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: workspace.make_request_directory(), range(8)))
    assert {path.parent for path in made} == {workspace.path}
    assert list(tmp_path.iterdir()) == [workspace.path]
    workspace.close()


def test_directory_is_locked_against_systemd_tmpfiles(workspace):
    """It spares locked directories: tmpfiles.d(5)."""
    locked = os.open(workspace.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(locked)


def test_unusable_parent_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Workspace.open(tmp_path / "missing")
    assert str(caught.value) == (
        f"{tmp_path}/missing: no temporary directory can be made: No such file or directory; "
        "point TMPDIR to a directory that the server's user may write to"
    )


def test_close_gives_the_descriptors_back(tmp_path):
    before = os.listdir("/proc/self/fd")
    Workspace.open(tmp_path).close()
    assert os.listdir("/proc/self/fd") == before


def test_workspace_in_memory_keeps_directories_on_disk(tmp_path):
    """What a killed process left in memory is removed, wherever the next one is."""
    disk, memory = tmp_path / "disk", tmp_path / "memory"
    disk.mkdir()
    memory.mkdir()
    workspace = Workspace.open(disk, memory=memory)
    assert workspace.is_in_memory
    assert workspace.path.parent == memory
    assert workspace.make_request_directory().parent.parent == memory
    assert workspace.make_request_directory(keep=True).parent == disk
    workspace.close()
    assert list(memory.iterdir()) == []
    dead = Path(tempfile.mkdtemp(prefix="stap-server.", dir=Tmpfs().directory))
    (dead / "lock").touch()
    other = Workspace.open(disk)
    assert not other.is_in_memory
    assert not dead.exists()
    other.close()
