"""A directory in memory is found only where it is safe and memory is plenty."""

from __future__ import annotations

import attrs
import pytest

from stapsrv.compile.engine.tmpfs import Tmpfs

MOST = 1 << 20
ENOUGH_KB = 2 * MOST // 1024


@pytest.fixture
def memory(tmp_path):
    """A host with just enough memory; the directory is on the file system of the test."""
    directory = tmp_path / "shm"
    directory.mkdir()
    directory.chmod(0o1777)
    (tmp_path / "mounts").write_text(f"tmpfs / tmpfs rw 0 0\ntmpfs {directory} tmpfs rw,nosuid 0 0\n")
    (tmp_path / "info").write_text(f"MemTotal: 9 kB\nMemAvailable:  {ENOUGH_KB} kB\nBuffers: 0 kB\n")
    (tmp_path / "membership").write_text("2:cpu,cpuacct:/\n1:memory:/a/b\n0::/x/y\n")
    (tmp_path / "groups").mkdir()
    return Tmpfs(
        directory=directory,
        mounts=tmp_path / "mounts",
        meminfo=tmp_path / "info",
        cgroups=tmp_path / "membership",
        cgroup_mount=tmp_path / "groups",
        logind_users=tmp_path / "users",
        first_login_uid=0,
    )


def limit(memory, group, name, text):
    place = memory.cgroup_mount / group
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text)


def test_directory_is_found_if_memory_is_enough(memory):
    limit(memory, "x/y", "memory.max", "max\n")
    limit(memory, "", "memory.max", f"{2 * MOST}\n")
    limit(memory, "memory/a", "memory.limit_in_bytes", "9223372036854771712\n")
    assert memory.find_directory(MOST) == memory.directory
    assert memory.find_directory(MOST + 1) is None


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("x/y", "memory.max"),
        ("x", "memory.max"),
        ("", "memory.max"),
        ("memory/a/b", "memory.limit_in_bytes"),
        ("memory", "memory.limit_in_bytes"),
    ],
)
def test_cgroup_limit_below_the_need_finds_none(memory, group, name):
    limit(memory, group, name, f"{2 * MOST - 1}\n")
    assert memory.find_directory(MOST) is None


def test_full_file_system_finds_none(memory):
    many = "9" * 15
    memory.meminfo.write_text(f"MemAvailable: {many} kB\n")
    assert memory.find_directory(1 << 56) is None


@pytest.mark.parametrize(
    "text", ["", "tmpfs /elsewhere tmpfs rw 0 0\n", "/dev/sda1 {} ext4 rw 0 0\n", "tmpfs {}x tmpfs rw 0 0\n"]
)
def test_other_file_system_finds_none(memory, text):
    memory.mounts.write_text(text.format(memory.directory))
    assert memory.find_directory(MOST) is None


def test_directory_without_sticky_bit_finds_none(memory):
    memory.directory.chmod(0o777)
    assert memory.find_directory(MOST) is None


def test_login_user_finds_none_under_logind(memory):
    memory.logind_users.mkdir()
    assert memory.find_directory(MOST) is None
    assert attrs.evolve(memory, first_login_uid=1 << 31).find_directory(MOST) == memory.directory


@pytest.mark.parametrize("table", ["directory", "mounts", "meminfo", "cgroups"])
def test_missing_file_finds_none(memory, table):
    path = getattr(memory, table)
    path.rename(path.with_name("gone"))
    assert memory.find_directory(MOST) is None


@pytest.mark.parametrize("text", ["", "MemAvailable: much kB\n"])
def test_damaged_meminfo_finds_none(memory, text):
    memory.meminfo.write_text(text)
    assert memory.find_directory(MOST) is None
