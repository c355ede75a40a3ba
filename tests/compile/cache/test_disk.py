"""Results on disk: whole or not at all, for this user alone, bounded in size and age."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stapsrv.compile.cache.disk import (
    DamagedError,
    DiskStore,
    StoreStatistics,
    VerifyCounts,
)
from stapsrv.errors import ConfigError

BODY = b"out" + bytes(range(256))
MEBI = 1024 * 1024


def open_store(directory: Path, *, max_bytes: int = MEBI, max_age_s: float = 1000.0) -> DiskStore:
    return DiskStore(directory / "results", max_bytes=max_bytes, max_age_s=max_age_s)


def file_of(store: DiskStore, name: str) -> Path:
    return store.directory / f"{name}.result"


def test_written_entry_is_read(tmp_path):
    store = open_store(tmp_path)
    assert store.read("a") is None
    assert store.write("a", BODY) == 0
    assert store.read("a") == BODY
    assert store.use("a")
    assert open_store(tmp_path).read("a") == BODY


def test_directory_is_made_with_the_first_entry(tmp_path):
    store = open_store(tmp_path / "x")
    assert (store.read("a"), store.evict(), store.clear()) == (None, 0, 0)
    assert store.statistics() == StoreStatistics(0, 0)
    assert list(tmp_path.iterdir()) == []
    store.write("a", BODY)
    assert store.read("a") == BODY


def test_modes_keep_others_out(tmp_path):
    store = open_store(tmp_path)
    store.write("a", BODY)
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(store, "a").stat().st_mode) == 0o600


@pytest.mark.parametrize("change", ["mode", "link", "file"])
def test_directory_that_others_can_enter_is_refused(tmp_path, change):
    if change == "mode":
        (tmp_path / "results").mkdir()
        (tmp_path / "results").chmod(0o750)
    elif change == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        (tmp_path / "results").symlink_to("elsewhere")
    else:
        (tmp_path / "results").touch()
    with pytest.raises(ConfigError, match="RESULT_CACHE=no"):
        open_store(tmp_path)


def test_damage_at_any_byte_is_found_and_removed(tmp_path):
    store = open_store(tmp_path)
    store.write("a", BODY)
    path = file_of(store, "a")
    whole = path.read_bytes()
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 0x40
        path.write_bytes(broken)
        with pytest.raises(DamagedError):
            store.read("a")
        assert not path.exists()
    assert store.read("a") is None


@pytest.mark.parametrize("length", [0, 1, 20, 60, -1])
def test_entry_of_another_length_is_damaged(tmp_path, length):
    store = open_store(tmp_path)
    store.write("a", BODY)
    path = file_of(store, "a")
    whole = path.read_bytes()
    for text in (whole[:length], whole + b"\0"):
        path.write_bytes(text)
        with pytest.raises(DamagedError):
            store.read("a")


def test_entry_under_another_name_is_damaged(tmp_path):
    store = open_store(tmp_path)
    store.write("a", BODY)
    file_of(store, "a").rename(file_of(store, "b"))
    with pytest.raises(DamagedError):
        store.read("b")


def test_old_entry_expires_although_it_is_used(tmp_path):
    store = open_store(tmp_path, max_age_s=60.0)
    for name in ("old", "young"):
        store.write(name, BODY)
    written = file_of(store, "old").stat().st_mtime
    os.utime(file_of(store, "old"), (written, written - 61))
    assert not store.use("old")
    assert not file_of(store, "old").exists()
    assert store.read("old") is None
    assert store.read("young") == BODY


def test_use_does_not_make_an_entry_younger(tmp_path):
    store = open_store(tmp_path, max_age_s=1e12)
    store.write("a", BODY)
    os.utime(file_of(store, "a"), (1.0, 12345.0))
    assert store.use("a")
    status = file_of(store, "a").stat()
    assert status.st_mtime == 12345.0
    assert status.st_atime > 12345.0


def test_least_recently_used_entries_are_evicted(tmp_path):
    body = os.urandom(100_000)
    store = open_store(tmp_path, max_bytes=MEBI)
    for number in range(10):
        store.write(f"{number}", body)
        os.utime(file_of(store, f"{number}"), (1000.0 + number, file_of(store, f"{number}").stat().st_mtime))
    assert store.read("0") == body
    assert store.write("new", body) == 2
    left = {name for name in ("new", *map(str, range(10))) if store.use(name)}
    assert left == {"new", "0", "3", "4", "5", "6", "7", "8", "9"}
    assert store.statistics().stored_bytes <= MEBI


def test_several_writers_keep_to_one_bound(tmp_path):
    """Each sees in time what the others have written."""
    stores = [open_store(tmp_path, max_bytes=MEBI) for _ in range(3)]
    for number in range(90):
        stores[number % 3].write(f"{number}", bytes(MEBI // 30))
        assert stores[0].statistics().stored_bytes <= 1.3 * MEBI


def test_entry_larger_than_the_bound_is_not_written(tmp_path):
    store = open_store(tmp_path, max_bytes=MEBI)
    store.write("a", BODY)
    assert store.write("huge", bytes(2 * MEBI)) == 0
    assert not store.use("huge")
    assert store.use("a")


def test_verify_removes_damaged_and_clear_removes_all(tmp_path):
    store = open_store(tmp_path)
    for name in ("a", "b", "c"):
        store.write(name, BODY)
    file_of(store, "b").write_bytes(b"")
    (store.directory / ".left.result.new").touch()
    assert store.verify() == VerifyCounts(sound=2, damaged=1)
    assert store.statistics() == StoreStatistics(2, 2 * file_of(store, "a").stat().st_size)
    assert store.clear() == 2
    assert list(store.directory.iterdir()) == []


def test_failed_write_leaves_the_old_entry(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.write("a", BODY)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        store.write("a", BODY[::-1])
    assert store.read("a") == BODY
    assert len(list(store.directory.iterdir())) == 1


WRITES_MANY = """
import sys
from pathlib import Path
from stapsrv.compile.cache.disk import DiskStore
directory, seed = sys.argv[1:]
store = DiskStore(Path(directory), max_bytes=1024 * 1024, max_age_s=1000.0)
for number in range(200):
    name = str(number % 7)
    store.write(name, name.encode() * 50_000)
    body = store.read(str((number + int(seed)) % 7))
    assert body is None or len(set(body)) == 1
"""


def test_two_processes_share_a_directory(tmp_path):
    store = open_store(tmp_path)
    command = [sys.executable, "-c", WRITES_MANY, str(store.directory)]
    with subprocess.Popen([*command, "1"]) as one, subprocess.Popen([*command, "3"]) as other:
        assert (one.wait(60), other.wait(60)) == (0, 0)
    assert store.verify() == VerifyCounts(sound=7, damaged=0)


def test_pinned_entries_are_evicted_after_all_others(tmp_path):
    store = DiskStore(tmp_path / "results", max_bytes=1000, max_age_s=1000.0)
    for name in ("old", "pinned", "new"):
        store.write(name, bytes(200))
    store.pin(["old", "pinned", "missing"], only=True)
    store.pin(["pinned"], only=True)
    for number in range(10):
        store.write(str(number), bytes(200))
    assert store.read("pinned") == bytes(200)
    assert store.read("old") is None
    assert store.read("new") is None
