"""Control groups: files of a stand-in, and the kernel's own where a test may make one (as root)."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from kit.trees import shell

from stapsrv.config.table import Limits
from stapsrv.errors import TranslatorError
from stapsrv.process import ExitReason, run_process_tree
from stapsrv.sandbox.cgroup import Delegation, RequestGroup, find_delegation
from stapsrv.sandbox.limits import NO_LIMITS
from stapsrv.sandbox.sandbox import Sandbox

pytestmark = pytest.mark.anyio

BOUNDS = Limits({"memory_bytes": 1 << 30, "processes": 100, "cores": 2})


@pytest.fixture
def proc(tmp_path):
    """A process in group /unit of a hierarchy that is mounted at ``tmp_path / 'fs'``."""
    directory = tmp_path / "proc"
    directory.mkdir()
    (directory / "cgroup").write_text("4:memory:/x\n0::/unit\n")
    mount = f"31 25 0:27 / {tmp_path}/fs rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
    (directory / "mountinfo").write_text(f"22 1 0:20 / / rw - ext4 /dev/vda rw\n{mount}")
    return directory


@pytest.fixture
def unit(tmp_path):
    """The directory of that group, with the files that are read and written."""
    group = tmp_path / "fs" / "unit"
    group.mkdir(parents=True)
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.type"):
        (group / name).touch()
    (group / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    return group


def test_delegated_group_is_found_and_its_controllers_handed_down(proc, unit):
    # The kernel makes these files; a stand-in's leaf has to have them beforehand.
    leaf = unit / f"stap-server-{os.getpid()}"
    leaf.mkdir()
    found = find_delegation(proc)
    assert found == Delegation(unit, ("memory", "pids", "cpu"))
    assert found.description == f"{unit} with memory, pids, cpu"
    assert (leaf / "cgroup.procs").read_text() == str(os.getpid())
    assert (unit / "cgroup.subtree_control").read_text() == "+cpu"


@pytest.mark.parametrize("missing", ["cgroup.type", "cgroup.procs"])
def test_group_that_is_not_delegated_is_left_alone(proc, unit, missing):
    (unit / missing).unlink()
    assert find_delegation(proc) is None
    assert not list(unit.glob("stap-server-*"))


@pytest.mark.parametrize("own", ["4:memory:/x\n", "0::/../elsewhere\n", ""])
def test_process_outside_cgroup_v2_has_no_delegation(proc, unit, own):
    (proc / "cgroup").write_text(own)
    assert find_delegation(proc) is None


def test_request_gets_the_limits_whose_controllers_are_handed_down(tmp_path, monkeypatch):
    made: list[Path] = []

    def mkdir(self, *_args, **_options):
        os.mkdir(self)
        made.append(self)
        for name in ("memory.max", "memory.oom.group", "pids.max", "cpu.max"):
            (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    group = Delegation(tmp_path, ("memory", "cpu")).make_group("x", BOUNDS)
    assert made == [group.directory]
    files = {path.name: path.read_text() for path in group.directory.iterdir()}
    expected = {"memory.max": "1073741824", "memory.oom.group": "1", "cpu.max": "200000 100000"}
    assert files == {**expected, "pids.max": ""}


def test_exceeded_limit_is_read_from_the_events(tmp_path):
    group = RequestGroup(tmp_path)
    assert group.exceeded is None
    (tmp_path / "pids.events").write_text("max 3\n")
    assert group.exceeded == "processes"
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\n")
    assert group.exceeded == "memory"


async def test_program_that_cannot_be_moved_into_its_group_is_ended(tmp_path):
    with pytest.raises(TranslatorError, match="could not be started in a control group: No such file"):
        await run_process_tree(["sleep", "1000"], deadline_s=60, group=RequestGroup(tmp_path / "missing"))


@pytest.fixture
def real():
    """A real control group below the root of the version 2 hierarchy."""
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if Path(mount, "cgroup.controllers").exists() and os.access(mount, os.W_OK):
            break
    else:
        pytest.skip("no cgroup v2 hierarchy that this user may write to")
    group = Path(mount, f"stapsrv-test-{os.getpid()}")
    group.mkdir()
    handed = (Path(mount) / "cgroup.subtree_control").read_text().split()
    yield Delegation(group, tuple(name for name in ("memory", "pids", "cpu") if name in handed))
    for left in group.glob("*/"):
        left.rmdir()
    group.rmdir()


def members_of(group: RequestGroup) -> list[str]:
    return (group.directory / "cgroup.procs").read_text().split()


def is_running(pid: int) -> bool:
    """Whether a process runs, also one that is not a child."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return False
    return True


@pytest.mark.root
async def test_removing_a_group_ends_what_left_the_session(real, monkeypatch, tmp_path):
    sandbox, add_tree, gate = Sandbox(None, delegation=real), RequestGroup.add_tree, tmp_path / "gate"
    os.mkfifo(gate)

    def add_and_let_go(group: RequestGroup, pid: int) -> None:
        add_tree(group, pid)  # the child, if it is there already, in the same way
        letting_go.write(b"go\n")

    monkeypatch.setattr(RequestGroup, "add_tree", add_and_let_go)
    with gate.open("r+b", buffering=0) as letting_go:
        async with sandbox.request_cgroup("x", NO_LIMITS) as group:
            # Before it has a session of its own it is ended with its parent's.
            leaver = """setsid sh -c 'echo left >"$1"; exec sleep 1000' sh "$1" & echo $!"""
            script = f'{leaver}; exec 1>&- 2>&- <"$1"; read word; read word'
            result = await run_process_tree(shell(script, gate), deadline_s=60, group=group, grace_s=0.1)
            escaped = int(result.stdout)
            members = members_of(group)
            assert result.exit_reason is ExitReason.EXITED
            assert str(escaped) in members
            assert is_running(escaped)
    assert not group.directory.exists()
    assert not is_running(escaped)


@pytest.mark.root
def test_children_started_before_are_moved_too(real):
    group = real.make_group("x", NO_LIMITS)
    with subprocess.Popen(shell("sleep 1000 & sleep 1000 & echo; wait"), stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        group.add_tree(parent.pid)
        assert len((group.directory / "cgroup.procs").read_text().split()) == 3
        group.remove()
        assert parent.wait() == -signal.SIGKILL
    assert not group.directory.exists()


@pytest.mark.root
async def test_memory_limit_holds_for_the_group(real):
    if "memory" not in real.controllers:
        pytest.skip("this host hands down no memory controller")
    sandbox = Sandbox(None, delegation=real)
    bounds = Limits({**NO_LIMITS.values, "memory_bytes": 64 << 20})
    async with sandbox.request_cgroup("x", bounds) as group:
        command = ["/usr/bin/python3", "-c", f"x = bytearray({128 << 20})"]
        result = await run_process_tree(command, deadline_s=60, group=group)
        assert result.status == -signal.SIGKILL
        assert group.exceeded == "memory"
