from __future__ import annotations

import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskStatus
from kit.trees import make_deep

from stapsrv.errors import IdentityError
from stapsrv.identity import locked_directory
from stapsrv.identity.locked_directory import (
    commit,
    ensure_directory,
    explain_os_errors,
    finish_commit,
    read_lock,
    remove_leftovers,
    staging_directory,
    write_lock,
)

from .conftest import contents, names, needs_permissions, set_mode, umask

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_new_directory_has_mode_0755(tmp_path: Path, mask: int):
    with umask(mask):
        ensure_directory(tmp_path / "ssl" / "server")
    assert (tmp_path / "ssl" / "server").stat().st_mode & 0o777 == 0o755


def test_existing_directory_keeps_its_mode(tmp_path: Path):
    tmp_path.chmod(0o700)
    ensure_directory(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_staging_directory_is_private_and_removed(tmp_path: Path):
    with staging_directory(tmp_path) as staging:
        assert staging.stat().st_mode & 0o777 == 0o700
        (staging / "file").touch()
    assert names(tmp_path) == []


def test_commit_replaces_the_staged_files_only(tmp_path: Path):
    (tmp_path / "moks").mkdir()
    (tmp_path / "moks" / "key").write_text("kept")
    (tmp_path / "changed").write_text("old")
    with staging_directory(tmp_path) as staging:
        (staging / "changed").write_text("new")
        (staging / "added").write_text("new")
        commit(staging, tmp_path)
    assert contents(tmp_path) == {"moks/key": b"kept", "changed": b"new", "added": b"new"}
    assert not (tmp_path / ".ready").exists()


def test_commit_removes_journals_of_the_old_files(tmp_path: Path):
    (tmp_path / "cert9.db-journal").write_text("undo this")
    (tmp_path / "other-journal").write_text("not ours")
    with staging_directory(tmp_path) as staging:
        (staging / "cert9.db").write_text("new")
        commit(staging, tmp_path)
    assert contents(tmp_path) == {"cert9.db": b"new", "other-journal": b"not ours"}


def test_commit_that_cannot_begin_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "changed").write_text("old")
    monkeypatch.setattr(Path, "rename", refuse)
    with staging_directory(tmp_path) as staging:
        (staging / "changed").write_text("new")
        with pytest.raises(OSError, match="No space left"):
            commit(staging, tmp_path)
    assert contents(tmp_path) == {"changed": b"old"}


async def test_interrupted_commit_is_finished_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with staging_directory(tmp_path) as staging, monkeypatch.context() as patched:
        for name in "abc":
            (staging / name).write_text("new")
        patched.setattr(locked_directory, "finish_commit", lambda _directory: None)
        commit(staging, tmp_path)
    # It had come as far as this when the power went.
    (tmp_path / ".ready" / "a").rename(tmp_path / "a")
    (tmp_path / "b").write_text("old")
    (tmp_path / ".new-dead").mkdir()
    async with read_lock(tmp_path) as is_whole:
        assert not is_whole

    async with write_lock(tmp_path):
        assert contents(tmp_path) == {"a": b"new", "b": b"new", "c": b"new"}
    async with read_lock(tmp_path) as is_whole:
        assert is_whole
        assert not (tmp_path / ".new-dead").exists()


async def test_leftovers_are_removed_unless_the_directory_is_locked(tmp_path: Path):
    async with write_lock(tmp_path):
        (tmp_path / ".new-alive").mkdir()
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [".lock", ".new-alive"]
    (tmp_path / ".new-alive" / "key4.db").write_text("secret")
    make_deep(tmp_path / ".new-alive")
    (tmp_path / "cert9.db").write_text("theirs")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".lock", "cert9.db"]
    remove_leftovers(tmp_path / "missing")


def test_nothing_to_finish_is_no_error(tmp_path: Path):
    finish_commit(tmp_path)
    assert names(tmp_path) == []


async def test_writer_excludes_writers_and_readers(tmp_path: Path):
    inside: list[str] = []
    others_wait = anyio.Event()

    async def change(name: str, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        async with write_lock(tmp_path):
            inside.append(name)
            task_status.started()
            await others_wait.wait()
            assert inside == [name]
            inside.remove(name)

    async def read() -> None:
        async with read_lock(tmp_path):
            assert inside == []

    async with anyio.create_task_group() as tasks:
        await tasks.start(change, "first")
        tasks.start_soon(change, "second")
        tasks.start_soon(read)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        others_wait.set()


async def test_readers_do_not_exclude_each_other(tmp_path: Path):
    async with read_lock(tmp_path), read_lock(tmp_path):
        pass


async def test_wait_for_the_lock_times_out(tmp_path: Path):
    async with write_lock(tmp_path):
        with pytest.raises(IdentityError, match=r"for more than 0\.1 s; see which one holds .*/\.lock"):
            async with write_lock(tmp_path, timeout_s=0.1):
                pytest.fail("two changed at once")
        with pytest.raises(IdentityError, match="another process has been changing it"):
            async with read_lock(tmp_path, timeout_s=0.1):
                pytest.fail("read while it changed")


async def test_lock_holds_between_processes_and_ends_with_its_holder(tmp_path: Path):
    holder = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    async with await anyio.open_process([sys.executable, "-c", holder, str(tmp_path / ".lock")]) as process:
        assert process.stdout is not None
        assert await process.stdout.receive(4) == b"held"
        with pytest.raises(IdentityError):
            async with write_lock(tmp_path, timeout_s=0.1):
                pytest.fail("the lock did not hold")
        process.kill()
    async with write_lock(tmp_path, timeout_s=60):
        pass


async def test_reading_a_missing_directory_makes_nothing(tmp_path: Path):
    async with read_lock(tmp_path / "missing"):
        pass
    assert names(tmp_path) == []


@needs_permissions
async def test_read_only_directory_can_be_read(tmp_path: Path):
    set_mode(tmp_path, 0o500)
    async with read_lock(tmp_path):
        assert names(tmp_path) == []


def test_os_error_gets_a_remedy(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError) as caught, explain_os_errors(tmp_path):
        (tmp_path / "file" / "below").touch()
    assert str(caught.value) == f"{tmp_path}: Not a directory; mend that, or use another directory"


@needs_permissions
def test_permission_denied_names_file_and_user(tmp_path: Path):
    tmp_path.chmod(0)
    with pytest.raises(IdentityError) as caught, explain_os_errors(tmp_path):
        (tmp_path / "file").read_bytes()
    assert caught.value.problem == f"permission denied on {tmp_path / 'file'}"
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith("let user ")
