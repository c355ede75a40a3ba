"""Each backend that works here: what a program in it sees and can do, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import attrs
import pytest
from kit.trees import Witness, shell

from stapsrv.process import ExitReason, run_process_tree
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.policy import SandboxPolicy, request_mounts

pytestmark = pytest.mark.anyio


class Directories:
    """A request's directory, and things beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "request dir"
        self.directory.mkdir()
        (directory / "home").mkdir()
        (directory / "shown").mkdir()
        (directory / "shown" / "file").write_text("shown\n")
        (directory / "shown" / "hidden").mkdir()
        (directory / "shown" / "hidden" / "key").write_text("key\n")
        (directory / "link").symlink_to("shown")
        (directory / "secret").write_text("secret\n")
        self.policy = SandboxPolicy(
            stap=Path("/usr/bin/stap"),
            environ={"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(directory / "home")},
            home=directory / "home",
            read=(directory / "link",),
        )

    def plan(self, **changes):
        return request_mounts(attrs.evolve(self.policy, **changes), self.directory)


@pytest.fixture
def directories(tmp_path):
    return Directories(tmp_path)


async def run(backend, plan, script, *arguments, **options):
    command = backend.command(plan, shell(script, *arguments))
    return await run_process_tree(command, **{"deadline_s": 30, "cwd": plan.directory, **options})


async def test_program_sees_only_what_the_plan_shows(backend, directories, tmp_path):
    result = await run(
        backend,
        directories.plan(),
        """
        cat "$1/link/file" "$1/shown/file"; pwd; echo x >made && cat made
        cat "$1/secret" && echo seen; echo x >"$1/shown/new" && echo written
        echo x >"$1/new" && echo written; ls -A "$1/home" /root /home && echo listed
        echo x >/dev/null && echo null; head -c3 /dev/zero | wc -c
        """,
        tmp_path,
    )
    assert result.stdout.decode() == f"shown\nshown\n{directories.directory}\nx\nnull\n3\n", result.stderr
    assert (directories.directory / "made").read_text() == "x\n"
    assert not (tmp_path / "new").exists()


async def test_program_has_no_capabilities_and_no_further_descriptors(backend, directories):
    script = (
        "grep -E '^(CapEff|CapPrm|CapInh|CapAmb|NoNewPrivs|Uid)' /proc/self/status; ls /proc/$$/fd; id -u"
    )
    result = await run(backend, directories.plan(), script)
    lines = result.stdout.decode().split("\n")
    words = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    assert {words[f"Cap{kind}:"] for kind in ("Eff", "Prm", "Inh", "Amb")} == {"0" * 16}
    assert words["NoNewPrivs:"] == "1"
    assert lines[-5:] == ["0", "1", "2", str(os.getuid()), ""], result


async def test_directory_below_dev_is_shown_beside_the_devices(backend, directories):
    with tempfile.TemporaryDirectory(prefix="stapsrv-test.", dir="/dev/shm") as name:
        directory = Path(name)
        (directory / "beside").write_text("secret\n")
        (directory / "own").mkdir()
        plan = request_mounts(directories.policy, directory / "own")
        script = "echo x >made && cat made; cat ../beside; echo x >/dev/null && echo null; echo x >/dev/new"
        result = await run(backend, plan, script)
        assert result.stdout == b"x\nnull\n", result.stderr
        assert (directory / "own" / "made").read_text() == "x\n"


async def test_program_inherits_no_ignored_or_blocked_signals(backend, directories):
    result = await run(backend, directories.plan(), "grep -E '^Sig(Ign|Blk)' /proc/self/status")
    blocked, ignored = (int(mask, 16) for mask in result.stdout.split()[1::2])
    # The process that runs the tests may ignore others.
    ours = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGCHLD))
    assert (blocked, ignored & ours) == (0, 0)


async def test_processes_of_the_host_cannot_be_signalled_or_read(backend, directories):
    result = await run(backend, directories.plan(), 'kill -0 "$1" && echo there; ls /proc', os.getpid())
    if backend.has_namespaces:
        assert b"there" not in result.stdout
        numbers = [int(name) for name in result.stdout.split() if name.isdigit()]
        assert max(numbers) < 10
    # Another's environment is no file to open, whatever is seen of it.
    spied = await run(backend, directories.plan(), 'cat "/proc/$1/environ" | wc -c', os.getpid())
    assert spied.stdout == b"0\n"


async def test_network_is_reachable_only_if_the_plan_allows_it(backend, directories):
    connect = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5); print('in')"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for urls, said in (("", b""), ("https://x.example", b"in\n")):
            plan = directories.plan(environ={**directories.policy.environ, "DEBUGINFOD_URLS": urls})
            command = backend.command(plan, ["/usr/bin/python3", "-c", connect, port])
            result = await run_process_tree(command, deadline_s=30)
            assert result.stdout == said, result


async def test_directory_is_shown_without_its_hidden_part(backend, directories, tmp_path):
    plan = directories.plan(secret=(tmp_path / "shown" / "hidden",))
    if not backend.has_namespaces:
        pytest.skip(f"{backend.value} cannot, and is not asked to: see test_sandbox.py")
    result = await run(backend, plan, 'ls -A "$1/shown" "$1/shown/hidden"', tmp_path)
    assert result.stdout.decode().split() == [
        *(f"{tmp_path}/shown:", "file", "hidden"),
        f"{tmp_path}/shown/hidden:",
    ]
    full = await run(backend, plan, 'echo x >"$1/shown/hidden/x"; echo x >/x; echo x >/dev/x', tmp_path)
    assert full.stderr.count(b"Read-only file system") == 3


async def test_status_outputs_and_environment_pass_through(backend, directories):
    script = 'echo out "$WORD"; echo err >&2; exit 7'
    env = {b"PATH": b"/usr/bin:/bin", b"WORD": b"\xff"}
    result = await run(backend, directories.plan(), script, env=env)
    assert (result.status, result.stdout, result.stderr) == (7, b"out \xff\n", b"err\n")


async def test_death_by_signal_shows_in_the_status(backend, directories):
    result = await run(backend, directories.plan(), "kill -XCPU $$; sleep 1000")
    assert result.status in {-signal.SIGXCPU, 128 + signal.SIGXCPU}


async def test_term_reaches_the_program_and_leaves_it_time(backend, directories):
    script = "trap 'echo bye >said; exit 3' TERM; while :; do sleep 0.01; done"
    result = await run(backend, directories.plan(), script, deadline_s=1, grace_s=20)
    assert result.exit_reason is ExitReason.TIMED_OUT
    assert (directories.directory / "said").read_text() == "bye\n"


async def test_deadline_ends_processes_that_left_the_session(backend, directories, witness):
    script = 'exec 3>"$1"; trap "" TERM; echo >&3; setsid sleep 1000 & sleep 1000'
    plan = directories.plan(write=(witness.path,))
    result = await run(backend, plan, script, witness.path, deadline_s=1, grace_s=0.1)
    assert result.exit_reason is ExitReason.TIMED_OUT
    await witness.wait_gone()


async def test_exit_ends_processes_that_were_left_behind(backend, directories, witness):
    """Twice forked away, and without changing the program's status."""
    script = """exec 3>"$1"; setsid sh -c 'setsid sleep 1000 & echo >&3' & wait; exit 3"""
    result = await run(backend, directories.plan(write=(witness.path,)), script, witness.path)
    assert (result.exit_reason, result.status) == (ExitReason.EXITED, 3)
    await witness.wait_gone()


async def test_tree_dies_with_a_killed_server(backend, directories, witness):
    script = 'exec 3>"$1"; echo ready >&3; setsid sleep 1000 & sleep 1000'
    command = backend.command(directories.plan(write=(witness.path,)), shell(script, witness.path))
    await check_killed_server(command, witness)


async def test_bubblewrap_without_a_death_signal_yet_dies_with_a_killed_server(
    directories, witness, tmp_path, monkeypatch
):
    """With a stand-in of two processes, neither of which has arranged to die with another."""
    (tmp_path / "bwrap").write_text(f"#!/bin/sh\nexec 3>{witness.path}\necho >&3\nsleep 1000 &\nsleep 1000\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    await check_killed_server(Backend.BUBBLEWRAP.command(directories.plan(), ["program"]), witness)


async def test_bubblewrap_does_not_start_after_the_server_has_ended(directories):
    command = Backend.BUBBLEWRAP.command(directories.plan(), ["touch", "made"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    server = f"/proc/{os.getpid()}/"
    words = [word.replace(server, f"/proc/{gone.pid}/") for word in command]
    assert words != command
    ran = subprocess.run(words, stderr=subprocess.PIPE, check=False)
    assert ran.returncode != 0
    assert ran.stderr.startswith(b"env: cannot change directory to ")
    assert list(directories.directory.iterdir()) == []


async def check_killed_server(command: list[str], witness: Witness) -> None:
    """Kill a server whose tree has written its line, and wait until nothing is left of the tree."""
    supervisor = """
        import sys, anyio
        from stapsrv.process import run_process_tree
        async def main():
            await run_process_tree(sys.argv[1:], deadline_s=60)
        anyio.run(main)
    """
    killed = subprocess.Popen([sys.executable, "-c", textwrap.dedent(supervisor), *command])
    assert await witness.wait_line()
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    await witness.wait_gone()


def test_command_names_all_mounts_in_order(directories):
    plan = directories.plan()
    for backend in Backend:
        command = [str(word) for word in backend.command(plan, ["program"])]
        left = iter(command)
        shown = [
            path for path, access in plan.mounts.items() if backend.has_namespaces or not access.is_hidden
        ]
        assert all(str(path) in left for path in shown)
        assert command[-1] == "program"


def test_launcher_is_started_by_the_base_interpreter(directories):
    """That of a virtual environment would look for its configuration."""
    assert sys._base_executable in Backend.LANDLOCK.command(directories.plan(), ["program"])
