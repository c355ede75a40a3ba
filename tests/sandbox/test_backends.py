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

from stapsrv.process import ExitReason, run_tree
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.policy import SandboxPolicy, request_view

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
        self.needs = SandboxPolicy(
            stap=Path("/usr/bin/stap"),
            environ={"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(directory / "home")},
            home=directory / "home",
            build_trees=(),
            releases=(),
            read=(directory / "link",),
        )

    def view(self, **changes):
        return request_view(attrs.evolve(self.needs, **changes), self.directory)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


async def run(mechanism, view, script, *arguments, **options):
    command = mechanism.command(view, shell(script, *arguments))
    return await run_tree(command, **{"deadline_s": 30, "cwd": view.directory, **options})


async def test_files(mechanism, place, tmp_path):
    outcome = await run(
        mechanism,
        place.view(),
        """
        cat "$1/link/file" "$1/shown/file"; pwd; echo x >made && cat made
        cat "$1/secret" && echo seen; echo x >"$1/shown/new" && echo written
        echo x >"$1/new" && echo written; ls -A "$1/home" /root /home && echo listed
        echo x >/dev/null && echo null; head -c3 /dev/zero | wc -c
        """,
        tmp_path,
    )
    assert outcome.stdout.decode() == f"shown\nshown\n{place.directory}\nx\nnull\n3\n", outcome.stderr
    assert (place.directory / "made").read_text() == "x\n"
    assert not (tmp_path / "new").exists()


async def test_no_privileges_and_no_descriptors(mechanism, place):
    script = (
        "grep -E '^(CapEff|CapPrm|CapInh|CapAmb|NoNewPrivs|Uid)' /proc/self/status; ls /proc/$$/fd; id -u"
    )
    outcome = await run(mechanism, place.view(), script)
    lines = outcome.stdout.decode().split("\n")
    words = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    assert {words[f"Cap{kind}:"] for kind in ("Eff", "Prm", "Inh", "Amb")} == {"0" * 16}
    assert words["NoNewPrivs:"] == "1"
    assert lines[-5:] == ["0", "1", "2", str(os.getuid()), ""], outcome


async def test_directory_in_memory_below_dev(mechanism, place):
    """Beside the devices, which are the view's own."""
    with tempfile.TemporaryDirectory(prefix="stapsrv-test.", dir="/dev/shm") as name:
        directory = Path(name)
        (directory / "beside").write_text("secret\n")
        (directory / "own").mkdir()
        view = request_view(place.needs, directory / "own")
        script = "echo x >made && cat made; cat ../beside; echo x >/dev/null && echo null; echo x >/dev/new"
        outcome = await run(mechanism, view, script)
        assert outcome.stdout == b"x\nnull\n", outcome.stderr
        assert (directory / "own" / "made").read_text() == "x\n"


async def test_signals(mechanism, place):
    """A program ignores what it decides to ignore, and nothing because of what started it."""
    outcome = await run(mechanism, place.view(), "grep -E '^Sig(Ign|Blk)' /proc/self/status")
    blocked, ignored = (int(mask, 16) for mask in outcome.stdout.split()[1::2])
    # Whoever runs the tests may ignore others.
    ours = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGCHLD))
    assert (blocked, ignored & ours) == (0, 0)


async def test_processes(mechanism, place):
    outcome = await run(mechanism, place.view(), 'kill -0 "$1" && echo there; ls /proc', os.getpid())
    if mechanism.has_namespaces:
        assert b"there" not in outcome.stdout
        numbers = [int(name) for name in outcome.stdout.split() if name.isdigit()]
        assert max(numbers) < 10
    # Another's environment is no file to open, whatever is seen of it.
    spied = await run(mechanism, place.view(), 'cat "/proc/$1/environ" | wc -c', os.getpid())
    assert spied.stdout == b"0\n"


async def test_network(mechanism, place):
    """The host's own services cannot be reached, unless the view says so."""
    connect = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5); print('in')"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for urls, said in (("", b""), ("https://x.example", b"in\n")):
            view = place.view(environ={**place.needs.environ, "DEBUGINFOD_URLS": urls})
            command = mechanism.command(view, ["/usr/bin/python3", "-c", connect, port])
            outcome = await run_tree(command, deadline_s=30)
            assert outcome.stdout == said, outcome


async def test_part_of_a_directory_is_hidden(mechanism, place, tmp_path):
    view = place.view(secret=(tmp_path / "shown" / "hidden",))
    if not mechanism.has_namespaces:
        pytest.skip(f"{mechanism.value} cannot, and is not asked to: see test_containing.py")
    outcome = await run(mechanism, view, 'ls -A "$1/shown" "$1/shown/hidden"', tmp_path)
    assert outcome.stdout.decode().split() == [
        *(f"{tmp_path}/shown:", "file", "hidden"),
        f"{tmp_path}/shown/hidden:",
    ]
    full = await run(mechanism, view, 'echo x >"$1/shown/hidden/x"; echo x >/x; echo x >/dev/x', tmp_path)
    assert full.stderr.count(b"Read-only file system") == 3


async def test_status_output_and_environment(mechanism, place):
    script = 'echo out "$WORD"; echo err >&2; exit 7'
    env = {b"PATH": b"/usr/bin:/bin", b"WORD": b"\xff"}
    outcome = await run(mechanism, place.view(), script, env=env)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (7, b"out \xff\n", b"err\n")


async def test_death_by_signal_is_told(mechanism, place):
    outcome = await run(mechanism, place.view(), "kill -XCPU $$; sleep 1000")
    assert outcome.status in {-signal.SIGXCPU, 128 + signal.SIGXCPU}


async def test_end_is_polite(mechanism, place):
    """The program hears TERM, and has time to tidy up."""
    script = "trap 'echo bye >said; exit 3' TERM; while :; do sleep 0.01; done"
    outcome = await run(mechanism, place.view(), script, deadline_s=1, grace_s=20)
    assert outcome.ending is ExitReason.TIMED_OUT
    assert (place.directory / "said").read_text() == "bye\n"


async def test_end_is_whole(mechanism, place, witness):
    """Even of what left its session."""
    script = 'exec 3>"$1"; trap "" TERM; echo >&3; setsid sleep 1000 & sleep 1000'
    view = place.view(write=(witness.path,))
    outcome = await run(mechanism, view, script, witness.path, deadline_s=1, grace_s=0.1)
    assert outcome.ending is ExitReason.TIMED_OUT
    await witness.wait_gone()


async def test_what_is_left_behind_ends(mechanism, place, witness):
    """A program's status is its own, though something of it is left, twice forked away."""
    script = """exec 3>"$1"; setsid sh -c 'setsid sleep 1000 & echo >&3' & wait; exit 3"""
    outcome = await run(mechanism, place.view(write=(witness.path,)), script, witness.path)
    assert (outcome.ending, outcome.status) == (ExitReason.EXITED, 3)
    await witness.wait_gone()


async def test_whole_tree_dies_with_a_killed_supervisor(mechanism, place, witness):
    script = 'exec 3>"$1"; echo ready >&3; setsid sleep 1000 & sleep 1000'
    command = mechanism.command(place.view(write=(witness.path,)), shell(script, witness.path))
    await see_killed_supervisor(command, witness)


async def test_bubblewrap_that_is_only_just_beginning_dies_with_a_killed_supervisor(
    place, witness, tmp_path, monkeypatch
):
    """A stand-in for it: two processes, neither of which has arranged to die with another."""
    (tmp_path / "bwrap").write_text(f"#!/bin/sh\nexec 3>{witness.path}\necho >&3\nsleep 1000 &\nsleep 1000\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    await see_killed_supervisor(Backend.BUBBLEWRAP.command(place.view(), ["program"]), witness)


async def test_bubblewrap_does_not_begin_for_one_who_is_gone(place):
    command = Backend.BUBBLEWRAP.command(place.view(), ["touch", "made"])
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
        from stapsrv.process import run_tree
        async def main():
            await run_tree(sys.argv[1:], deadline_s=60)
        anyio.run(main)
    """
    killed = subprocess.Popen([sys.executable, "-c", textwrap.dedent(supervisor), *command])
    assert await witness.wait_line()
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    await witness.wait_gone()


def test_description_names_all_places_in_order(place):
    """Each mechanism is told of the same places; bubblewrap's mounts go from the outside in."""
    view = place.view()
    for mechanism in Backend:
        command = [str(word) for word in mechanism.command(view, ["program"])]
        left = iter(command)
        shown = [item for item in view.places if mechanism.has_namespaces or not item.access.is_hidden]
        assert all(str(item.path) in left for item in shown)
        assert command[-1] == "program"
