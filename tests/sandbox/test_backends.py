"""Each mechanism of this host: what a program in it sees, can do, and how it ends."""

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


class Place:
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
            build_trees=(),
            releases=(),
            read=(directory / "link",),
        )

    def plan(self, **changes):
        return request_mounts(attrs.evolve(self.policy, **changes), self.directory)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


async def run(backend, plan, script, *arguments, **options):
    command = backend.command(plan, shell(script, *arguments))
    return await run_process_tree(command, **{"deadline_s": 30, "cwd": plan.directory, **options})


async def test_files(backend, place, tmp_path):
    result = await run(
        backend,
        place.plan(),
        """
        cat "$1/link/file" "$1/shown/file"; pwd; echo x >made && cat made
        cat "$1/secret" && echo seen; echo x >"$1/shown/new" && echo written
        echo x >"$1/new" && echo written; ls -A "$1/home" /root /home && echo listed
        echo x >/dev/null && echo null; head -c3 /dev/zero | wc -c
        """,
        tmp_path,
    )
    assert result.stdout.decode() == f"shown\nshown\n{place.directory}\nx\nnull\n3\n", result.stderr
    assert (place.directory / "made").read_text() == "x\n"
    assert not (tmp_path / "new").exists()


async def test_no_privileges_and_no_descriptors(backend, place):
    script = (
        "grep -E '^(CapEff|CapPrm|CapInh|CapAmb|NoNewPrivs|Uid)' /proc/self/status; ls /proc/$$/fd; id -u"
    )
    result = await run(backend, place.plan(), script)
    lines = result.stdout.decode().split("\n")
    words = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    assert {words[f"Cap{kind}:"] for kind in ("Eff", "Prm", "Inh", "Amb")} == {"0" * 16}
    assert words["NoNewPrivs:"] == "1"
    assert lines[-5:] == ["0", "1", "2", str(os.getuid()), ""], result


async def test_directory_in_memory_below_dev(backend, place):
    """Beside the devices, which are the view's own."""
    with tempfile.TemporaryDirectory(prefix="stapsrv-test.", dir="/dev/shm") as name:
        directory = Path(name)
        (directory / "beside").write_text("secret\n")
        (directory / "own").mkdir()
        plan = request_mounts(place.policy, directory / "own")
        script = "echo x >made && cat made; cat ../beside; echo x >/dev/null && echo null; echo x >/dev/new"
        result = await run(backend, plan, script)
        assert result.stdout == b"x\nnull\n", result.stderr
        assert (directory / "own" / "made").read_text() == "x\n"


async def test_signals(backend, place):
    """A program ignores what it decides to ignore, and nothing because of what started it."""
    result = await run(backend, place.plan(), "grep -E '^Sig(Ign|Blk)' /proc/self/status")
    blocked, ignored = (int(mask, 16) for mask in result.stdout.split()[1::2])
    # Whoever runs the tests may ignore others.
    ours = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGCHLD))
    assert (blocked, ignored & ours) == (0, 0)


async def test_processes(backend, place):
    result = await run(backend, place.plan(), 'kill -0 "$1" && echo there; ls /proc', os.getpid())
    if backend.has_namespaces:
        assert b"there" not in result.stdout
        numbers = [int(name) for name in result.stdout.split() if name.isdigit()]
        assert max(numbers) < 10
    # Another's environment is no file to open, whatever is seen of it.
    spied = await run(backend, place.plan(), 'cat "/proc/$1/environ" | wc -c', os.getpid())
    assert spied.stdout == b"0\n"


async def test_network(backend, place):
    """The host's own services cannot be reached, unless the view says so."""
    connect = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5); print('in')"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for urls, said in (("", b""), ("https://x.example", b"in\n")):
            plan = place.plan(environ={**place.policy.environ, "DEBUGINFOD_URLS": urls})
            command = backend.command(plan, ["/usr/bin/python3", "-c", connect, port])
            result = await run_process_tree(command, deadline_s=30)
            assert result.stdout == said, result


async def test_part_of_a_directory_is_hidden(backend, place, tmp_path):
    plan = place.plan(secret=(tmp_path / "shown" / "hidden",))
    if not backend.has_namespaces:
        pytest.skip(f"{backend.value} cannot, and is not asked to: see test_containing.py")
    result = await run(backend, plan, 'ls -A "$1/shown" "$1/shown/hidden"', tmp_path)
    assert result.stdout.decode().split() == [
        *(f"{tmp_path}/shown:", "file", "hidden"),
        f"{tmp_path}/shown/hidden:",
    ]
    full = await run(backend, plan, 'echo x >"$1/shown/hidden/x"; echo x >/x; echo x >/dev/x', tmp_path)
    assert full.stderr.count(b"Read-only file system") == 3


async def test_status_output_and_environment(backend, place):
    script = 'echo out "$WORD"; echo err >&2; exit 7'
    env = {b"PATH": b"/usr/bin:/bin", b"WORD": b"\xff"}
    result = await run(backend, place.plan(), script, env=env)
    assert (result.status, result.stdout, result.stderr) == (7, b"out \xff\n", b"err\n")


async def test_death_by_signal_is_told(backend, place):
    result = await run(backend, place.plan(), "kill -XCPU $$; sleep 1000")
    assert result.status in {-signal.SIGXCPU, 128 + signal.SIGXCPU}


async def test_end_is_polite(backend, place):
    """The program hears TERM, and has time to tidy up."""
    script = "trap 'echo bye >said; exit 3' TERM; while :; do sleep 0.01; done"
    result = await run(backend, place.plan(), script, deadline_s=1, grace_s=20)
    assert result.exit_reason is ExitReason.TIMED_OUT
    assert (place.directory / "said").read_text() == "bye\n"


async def test_end_is_whole(backend, place, witness):
    """Even of what left its session."""
    script = 'exec 3>"$1"; trap "" TERM; echo >&3; setsid sleep 1000 & sleep 1000'
    plan = place.plan(write=(witness.path,))
    result = await run(backend, plan, script, witness.path, deadline_s=1, grace_s=0.1)
    assert result.exit_reason is ExitReason.TIMED_OUT
    await witness.wait_gone()


async def test_what_is_left_behind_ends(backend, place, witness):
    """A program's status is its own, though something of it is left, twice forked away."""
    script = """exec 3>"$1"; setsid sh -c 'setsid sleep 1000 & echo >&3' & wait; exit 3"""
    result = await run(backend, place.plan(write=(witness.path,)), script, witness.path)
    assert (result.exit_reason, result.status) == (ExitReason.EXITED, 3)
    await witness.wait_gone()


async def test_whole_tree_dies_with_a_killed_supervisor(backend, place, witness):
    script = 'exec 3>"$1"; echo ready >&3; setsid sleep 1000 & sleep 1000'
    command = backend.command(place.plan(write=(witness.path,)), shell(script, witness.path))
    await see_killed_supervisor(command, witness)


async def test_bubblewrap_that_is_only_just_beginning_dies_with_a_killed_supervisor(
    place, witness, tmp_path, monkeypatch
):
    """A stand-in for it: two processes, neither of which has arranged to die with another."""
    (tmp_path / "bwrap").write_text(f"#!/bin/sh\nexec 3>{witness.path}\necho >&3\nsleep 1000 &\nsleep 1000\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    await see_killed_supervisor(Backend.BUBBLEWRAP.command(place.plan(), ["program"]), witness)


async def test_bubblewrap_does_not_begin_for_one_who_is_gone(place):
    command = Backend.BUBBLEWRAP.command(place.plan(), ["touch", "made"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    words = [f"--target={gone.pid}" if word == f"--target={os.getpid()}" else word for word in command]
    assert words != command
    ran = subprocess.run(words, stderr=subprocess.PIPE, check=False)
    assert ran.returncode != 0
    assert ran.stderr.startswith(b"nsenter: cannot open /proc/")
    assert list(place.directory.iterdir()) == []


async def see_killed_supervisor(command: list[str], witness: Witness) -> None:
    """Kill a supervisor whose tree has written its line, and wait until nothing is left of the tree."""
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


def test_description_names_all_places_in_order(place):
    """Each mechanism is told of the same places; bubblewrap's mounts go from the outside in."""
    plan = place.plan()
    for backend in Backend:
        command = [str(word) for word in backend.command(plan, ["program"])]
        left = iter(command)
        shown = [item for item in plan.mounts if backend.has_namespaces or not item.access.is_hidden]
        assert all(str(item.path) in left for item in shown)
        assert command[-1] == "program"
