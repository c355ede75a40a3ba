"""The bound on temporary space, measured while compiles run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anyio
import pytest
from kit.trees import make_deep

from stapsrv.compile.engine import temp_quota
from stapsrv.compile.engine.temp_quota import TempQuota, measure_bytes
from stapsrv.errors import RequestRejected, TranslatorError
from stapsrv.rejection import RejectReason
from stapsrv.system import trees
from stapsrv.system.blocking import BlockingCalls

pytestmark = pytest.mark.anyio

KIBI = 1024


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(temp_quota, "_INTERVAL_S", 0.02)


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


def test_disk_use_counts_and_links_are_not_followed(tmp_path):
    write(tmp_path / "own" / "deep" / "large", 300 * KIBI)
    write(tmp_path / "elsewhere" / "other", 9000 * KIBI)
    (tmp_path / "own" / "link").symlink_to(tmp_path / "elsewhere")
    measured = measure_bytes(tmp_path / "own", enough=2**40)
    assert 300 * KIBI <= measured < 400 * KIBI


def test_empty_files_count(tmp_path):
    for number in range(100):
        (tmp_path / str(number)).touch()
    assert measure_bytes(tmp_path, enough=2**40) == 100 * 16 * KIBI


def test_counting_stops_above_enough(tmp_path):
    for number in range(100):
        (tmp_path / str(number)).touch()
    assert measure_bytes(tmp_path, enough=160 * KIBI) == 176 * KIBI


@pytest.mark.skipif(os.geteuid() == 0, reason="root looks everywhere")
def test_unreadable_directory_counts_as_more_than_enough(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0)
    try:
        assert measure_bytes(tmp_path, enough=10**9) == 10**9 + 1
    finally:
        hidden.chmod(0o700)


def test_directories_without_a_name_count_as_more_than_enough(tmp_path):
    """Files below a path that the kernel does not take are not counted."""
    make_deep(tmp_path, 110)
    assert measure_bytes(tmp_path, enough=10**9) < 10**9
    (tmp_path / "other").mkdir()
    make_deep(tmp_path / "other", 110)
    assert measure_bytes(tmp_path, enough=10**9) == 10**9 + 1
    trees.remove(tmp_path)


async def test_failed_measurement_is_repeated(tmp_path, monkeypatch):
    write(tmp_path / "file", 100 * KIBI)
    measure, failed = measure_bytes, []

    def fail_once(*arguments: object, **options: object) -> int:
        if not failed:
            failed.append(True)
            raise OSError(errno.EMFILE, "Too many open files")
        return measure(*arguments, **options)

    monkeypatch.setattr(temp_quota, "measure_bytes", fail_once)
    quota = TempQuota(10**9)
    with anyio.fail_after(60), pytest.raises(TranslatorError, match="more than 1000 bytes"):
        await quota.enforce(tmp_path, anyio.sleep_forever, most_bytes=1000, files=BlockingCalls())
    assert failed


def test_missing_directory_counts_nothing(tmp_path):
    assert measure_bytes(tmp_path / "gone", enough=1) == 0


async def test_result_and_error_of_the_run_pass_through(tmp_path):
    all_space = TempQuota(10**9)

    async def give() -> int:
        return 7

    async def fail() -> int:
        raise RequestRejected("no")

    async def enforce(run):
        return await all_space.enforce(tmp_path, run, most_bytes=10**9, files=BlockingCalls())

    assert await enforce(give) == 7
    with pytest.raises(RequestRejected, match=r"^no$"):
        await enforce(fail)
    assert all_space.used_bytes == 0


async def test_largest_of_all_is_ended_above_the_quota(tmp_path):
    all_space = TempQuota(1000 * KIBI)
    ended: dict[str, TranslatorError] = {}
    done = anyio.Event()

    async def use(name: str, size: int) -> None:
        write(tmp_path / name / "file", size)
        try:
            await all_space.enforce(tmp_path / name, done.wait, most_bytes=10**9, files=BlockingCalls())
        except TranslatorError as exc:
            ended[name] = exc
            done.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use, "small", 400 * KIBI)
            tasks.start_soon(use, "large", 700 * KIBI)
    assert list(ended) == ["large"]
    assert ended["large"].reject_reason is RejectReason.TOTAL_TEMP_SIZE
    assert all_space.used_bytes == 0


async def test_cancelled_run_no_longer_counts(tmp_path):
    all_space = TempQuota(10**9)
    write(tmp_path / "file", 100 * KIBI)
    looked = anyio.Event()

    class Files(BlockingCalls):
        async def run(self, work):
            found = await super().run(work)
            looked.set()
            return found

    async def run() -> None:
        await all_space.enforce(tmp_path, anyio.sleep_forever, most_bytes=10**9, files=Files())

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await looked.wait()
            assert all_space.used_bytes > 0
            tasks.cancel_scope.cancel()
    assert all_space.used_bytes == 0
