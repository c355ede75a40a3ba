"""Resource limits with programs that want too much, in each backend that works here and without one."""

from __future__ import annotations

import os
import resource
import textwrap
from pathlib import Path

import pytest
from kit.trees import shell

from stapsrv.config.settings import ServerSettings
from stapsrv.config.table import Limits
from stapsrv.process import run_process_tree
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.limits import NO_LIMITS, count_processes, explain_limit, limit_command
from stapsrv.sandbox.mount_plan import MountPlan
from stapsrv.sandbox.policy import SandboxPolicy
from stapsrv.sandbox.sandbox import Sandbox

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The limits are the kernel's, whatever event loop waits."""
    return "asyncio"


PYTHON = "/usr/bin/python3"
MEBI = 1 << 20


def only(**limits: float) -> Limits:
    """Return those limits and no other."""
    return Limits({**NO_LIMITS.values, **limits})


@pytest.fixture(params=[*Backend, None], ids=lambda kind: kind.value if kind else "off")
async def run_limited(request, available, tmp_path):
    """Run a command with the given limits; return its result and the explanation."""
    sandbox = Sandbox(request.param and await available(request.param))
    directory = tmp_path / "request"
    directory.mkdir()
    policy = SandboxPolicy(
        stap=Path("/usr/bin/stap"),
        environ={"PATH": "/usr/bin:/bin"},
        home=tmp_path / "home",
    )
    plan: MountPlan = sandbox.request_mounts(policy, directory, cwd=directory)

    async def run(command, **limits):
        bounds = only(**limits)
        result = await run_process_tree(sandbox.command(plan, bounds, command), deadline_s=60, cwd=directory)
        return result, explain_limit(bounds, result.status, result.stderr)

    return run


async def test_processor_time_limit_ends_the_program_and_is_named(run_limited):
    result, said = await run_limited(shell("while :; do :; done"), cpu_s=1.0)
    assert result.status in {-24, 128 + 24}
    assert said == "The compile needed more than 1 seconds of processor time (LIMIT_CPU of this server)"


async def test_memory_limit_fails_allocations(run_limited):
    hungry = f"x = bytearray({300 * MEBI})"
    assert (await run_limited([PYTHON, "-c", hungry]))[0].status == 0
    result, _ = await run_limited([PYTHON, "-c", hungry], memory_bytes=200 * MEBI)
    assert result.status == 1
    assert result.stderr.endswith(b"MemoryError\n")


async def test_file_limit_ends_the_program_and_is_named(run_limited, tmp_path):
    result, said = await run_limited(["dd", "if=/dev/zero", "of=big", "bs=64k", "count=64"], file_bytes=MEBI)
    assert result.status != 0
    assert said == "The compile needed a file of more than 1M (LIMIT_FILE of this server)"
    assert (tmp_path / "request" / "big").stat().st_size == MEBI


def test_process_limit_leaves_room_for_the_host_s_processes(tmp_path):
    assert count_processes() >= len(list(Path("/proc").glob("[0-9]*"))) // 2
    assert count_processes(tmp_path / "missing") == 0
    assert limit_command(only(processes=3), others=4)[2] == "--nproc=7:7"
    assert "--nproc" not in " ".join(limit_command(only(), others=4))


async def test_process_limit_stops_a_fork_bomb_and_is_named(run_limited):
    """Without namespaces the limit comes on top of what runs on the host."""
    there = count_processes()
    bomb = """
        import os, sys
        made = 0
        over, held = os.pipe()
        try:
            while made < 5000:
                if os.fork() == 0:
                    os.close(held)
                    os.read(over, 1)  # until the first one ends
                    os._exit(0)
                made += 1
        except BlockingIOError as exc:
            print(made)
            sys.exit(f"fork: {exc.strerror}")
    """
    result, said = await run_limited([PYTHON, "-c", textwrap.dedent(bomb)], processes=300)
    assert result.status == 1
    assert 0 < int(result.stdout) < there + 600
    assert said == "The compile needed more than 300 processes (LIMIT_PROCESSES of this server)"


async def test_priorities_are_set_and_other_limits_left_alone(run_limited):
    script = "nice; cat /proc/self/oom_score_adj; ulimit -c; ulimit -t; ulimit -v; ulimit -f"
    result, _ = await run_limited(shell(script), nice=7)
    niceness = b"%d" % (os.nice(0) + 7)
    assert result.stdout.split() == [niceness, b"500", b"0", b"unlimited", b"unlimited", b"unlimited"]


def test_limits_that_a_server_s_settings_do_not_name_have_their_defaults():
    limits = ServerSettings(tuning={"cpu_s": 9.0, "memory_bytes": 0}).limits
    command = limit_command(limits)
    assert command[2].startswith("--cpu=9:")
    assert command[3] == f"--fsize={Limits().file_bytes}:{Limits().file_bytes}"


def test_lower_limits_are_not_raised(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _number: (5, 5))
    command = limit_command(only(cpu_s=60.0, memory_bytes=4096))
    assert command == ["prlimit", "--core=0", "--cpu=5:5", "--as=5:5", "--"]


@pytest.mark.parametrize(
    ("status", "stderr", "exceeded", "word"),
    [
        (1, b"gcc: fatal error: CPU time limit exceeded signal terminated program cc1", None, "LIMIT_CPU"),
        (1, b"cc1: out of memory allocating 65536 bytes after a total of 1 bytes", None, "LIMIT_MEMORY"),
        (1, b"terminate called: std::bad_alloc", None, "LIMIT_MEMORY"),
        (1, b"make: /bin/sh: Resource temporarily unavailable", None, "LIMIT_PROCESSES"),
        (2, b"/bin/sh: 1: Cannot fork", None, "LIMIT_PROCESSES"),
        (1, b"/usr/bin/ld: final link failed: File too large", None, "LIMIT_FILE"),
        (-25, b"", None, "LIMIT_FILE"),
        (128 + 24, b"", None, "LIMIT_CPU"),
        (137, b"", "memory", "LIMIT_MEMORY"),
    ],
)
def test_limit_that_was_met_is_explained(status, stderr, exceeded, word):
    limits = only(cpu_s=1.0, memory_bytes=1, file_bytes=1, processes=1)
    assert f"({word} of this server)" in explain_limit(limits, status, stderr, exceeded=exceeded)


def test_limit_that_a_child_met_is_explained_after_success():
    """stap goes on without a feature of the kernel that it failed to look for."""
    limits = only(processes=1)
    assert "(LIMIT_PROCESSES of this server)" in str(explain_limit(limits, 0, b"", exceeded="processes"))
    assert explain_limit(limits, 0, b"", exceeded="memory") is None


def test_nothing_is_explained_without_a_limit_met():
    limits = only(cpu_s=1.0, memory_bytes=1)
    assert explain_limit(limits, 0, b"std::bad_alloc") is None
    assert explain_limit(limits, 1, b"parse error") is None
    assert explain_limit(limits, 1, b"File too large") is None
    assert explain_limit(only(), -24, b"") is None
