"""Process trees: their outputs, how they end, and that nothing of them is left."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from kit.loops import every_loop
from kit.trees import Witness, shell

from stapsrv import process
from stapsrv.errors import RequestRejected, TranslatorError
from stapsrv.process import Containment, ExitReason, ProcessResult, find_containment, run_process_tree

pytestmark = [pytest.mark.anyio, every_loop]


@pytest.fixture(params=[Containment.NAMESPACE, Containment.DEATH_SIGNAL, Containment.SESSION])
async def containment(request: pytest.FixtureRequest) -> Containment:
    if request.param is Containment.NAMESPACE and await find_containment() is not Containment.NAMESPACE:
        pytest.skip("this host allows its users no user namespaces")
    return request.param


@pytest.fixture
def witness(tmp_path: Path):
    made = Witness(tmp_path)
    yield made
    made.close()


def has_children() -> bool:
    """Whether this process has a child, zombies included."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


@pytest.fixture(autouse=True, scope="module")
def uvloop_has_run():
    """The first loop of uvloop's opens descriptors for good."""
    anyio.run(anyio.lowlevel.checkpoint, backend_options={"use_uvloop": True})


@pytest.fixture(autouse=True)
def no_descriptor_is_left(uvloop_has_run):
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


async def test_outputs_and_status_are_returned(containment):
    result = await run_process_tree(
        shell("echo out; echo err >&2; exit 7"), deadline_s=20, containment=containment
    )
    assert result == ProcessResult(ExitReason.EXITED, 7, b"out\n", b"err\n")


async def test_standard_input_is_empty():
    assert (await run_process_tree(["cat"], deadline_s=20)).stdout == b""


async def test_arguments_are_passed_byte_for_byte(containment):
    nasty = [b"a\nb", b"'\"$(id)`", b"\xff\xfe", b"", b"-e"]
    command = [sys.executable, "-c", "import os,sys; os.write(1, b'|'.join(map(os.fsencode, sys.argv[1:])))"]
    result = await run_process_tree([*command, *nasty], deadline_s=20, containment=containment)
    assert result.stdout == b"|".join(nasty)


async def test_directory_and_environment_are_the_given_ones(tmp_path, containment):
    env = {b"PATH": os.environb[b"PATH"], b"GREETING": b"hello"}
    result = await run_process_tree(
        shell('pwd; echo "$GREETING"; echo "$HOME"'),
        deadline_s=20,
        cwd=tmp_path,
        env=env,
        containment=containment,
    )
    assert result.stdout == f"{tmp_path}\nhello\n\n".encode()


async def test_death_by_signal_is_a_negative_status():
    assert (await run_process_tree(shell("kill -SEGV $$"), deadline_s=20)).status == -signal.SIGSEGV


async def test_missing_program_is_an_error():
    with pytest.raises(TranslatorError, match=r"^/no/such/program: could not be started: No such file"):
        await run_process_tree(["/no/such/program"], deadline_s=20)


async def test_too_long_arguments_are_rejected():
    with pytest.raises(RequestRejected, match="longer than a program can take"):
        await run_process_tree(["true", *["x" * 100_000] * 100], deadline_s=20)


async def test_nothing_is_left_where_descriptors_run_out():
    """With one more descriptor each time, until the program runs."""
    free = os.dup(0)
    os.close(free)
    before = os.listdir("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refusals: list[str] = []
    try:
        while True:
            # Descriptors are given out from the lowest: the limit is so many above the first that is free.
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + len(refusals), hard))
            try:
                result = await run_process_tree(["true"], deadline_s=10)
            except TranslatorError as exc:
                refusals.append(str(exc))
            else:
                break
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert result.exit_reason is ExitReason.EXITED
    assert len(refusals) >= 5
    assert set(refusals) == {"true: could not be started: Too many open files"}
    assert os.listdir("/proc/self/fd") == before
    assert not has_children()


async def test_child_without_a_pidfd_is_ended(monkeypatch, witness):
    def refuse(_pid: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(TranslatorError, match="Cannot allocate memory"):
        await run_process_tree(shell("exec 3>$1; sleep 300", witness.path), deadline_s=10)
    assert not has_children()


@pytest.fixture
def run_past_deadline(monkeypatch, witness):
    """Run a script whose deadline comes when it has written a line to descriptor 3."""
    deadline_s, timers = 1000.0, []
    move_on_after = anyio.move_on_after

    def keep_timer(delay: float, **options: bool) -> anyio.CancelScope:
        timer = move_on_after(delay, **options)
        if delay == deadline_s:
            timers.append(timer)
        return timer

    async def run(script: str, *, containment: Containment, grace_s: float) -> ProcessResult:
        command, outcomes = shell(f'exec 3>"$1"; {script}', witness.path), []

        async def keep_outcome() -> None:
            options = {"deadline_s": deadline_s, "containment": containment, "grace_s": grace_s}
            outcomes.append(await run_process_tree(command, **options))

        monkeypatch.setattr(anyio, "move_on_after", keep_timer)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_outcome)
            assert await witness.wait_line() == "ready\n"
            (timer,) = timers
            timer.deadline = anyio.current_time()
        (result,) = outcomes
        return result

    return run


async def test_deadline_ends_the_tree_by_term(witness, run_past_deadline, containment):
    script = "trap 'echo tidied; kill $!; exit 3' TERM; sleep 1000 & echo ready >&3; wait"
    result = await run_past_deadline(script, containment=containment, grace_s=20)
    assert (result.exit_reason, result.status) == (ExitReason.TIMED_OUT, 3)
    await witness.wait_gone()


async def test_tree_that_ignores_term_is_killed(witness, run_past_deadline, containment):
    script = "trap '' TERM; sleep 1000 & sleep 1000 & echo ready >&3; wait"
    result = await run_past_deadline(script, containment=containment, grace_s=0.1)
    assert result.exit_reason is ExitReason.TIMED_OUT
    assert result.status in {-signal.SIGKILL, 128 + signal.SIGKILL}
    await witness.wait_gone()


async def test_exit_of_the_first_process_ends_its_session(witness, containment):
    """A background child keeps the pipes open; it is ended, not waited for."""
    script = 'exec 3>"$1"; sleep 1000 & echo done'
    result = await run_process_tree(shell(script, witness.path), deadline_s=60, containment=containment)
    assert (result.exit_reason, result.status, result.stdout) == (ExitReason.EXITED, 0, b"done\n")
    await witness.wait_gone()


async def test_namespace_ends_what_left_the_session(witness, run_past_deadline):
    if await find_containment() is not Containment.NAMESPACE:
        pytest.skip("this host allows its users no user namespaces")
    script = "setsid sh -c 'echo ready >&3; sleep 1000' & sleep 1000"
    await run_past_deadline(script, containment=Containment.NAMESPACE, grace_s=0.1)
    await witness.wait_gone()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel groups no processes")
async def test_background_trees_begun_at_once_all_have_a_low_priority():
    """The kernel refuses to change a second one within a tenth of a second; each ends once it is changed."""
    script = 'until read -r _ _ niceness </proc/self/autogroup; [ "$niceness" = 10 ]; do :; done'
    ended = []

    async def run() -> None:
        ended.append(await run_process_tree(["sh", "-c", script], deadline_s=60, background=True))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(run)
    assert [result.exit_reason for result in ended] == [ExitReason.EXITED] * 3


@pytest.mark.parametrize("stream", [1, 2])
async def test_output_above_the_limit_ends_the_tree(witness, containment, stream):
    script = f'exec 3>"$1"; yes >&{stream}'
    result = await run_process_tree(
        shell(script, witness.path), deadline_s=60, containment=containment, output_bytes=100_000, grace_s=0.1
    )
    assert result.exit_reason is ExitReason.OUTPUT_LIMIT
    assert len((b"", result.stdout, result.stderr)[stream]) == 100_000
    await witness.wait_gone()


async def test_cancellation_ends_the_tree(witness, containment):
    script = 'exec 3>"$1"; echo ready >&3; sleep 1000 & sleep 1000'

    async def run() -> None:
        await run_process_tree(
            shell(script, witness.path), deadline_s=60, containment=containment, grace_s=0.1
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await witness.wait_line()
        tasks.cancel_scope.cancel()
    await witness.wait_gone()


async def test_tree_in_a_namespace_dies_with_a_killed_server(witness):
    if await find_containment() is not Containment.NAMESPACE:
        pytest.skip("this host allows its users no user namespaces")
    supervisor = """
        import sys, anyio
        from stapsrv.process import *
        script = 'exec 3>"$1"; echo ready >&3; setsid sleep 1000 & sleep 1000'
        async def main():
            await run_process_tree(["/bin/sh", "-c", script, "sh", sys.argv[1]], deadline_s=60,
                           containment=Containment.NAMESPACE)
        anyio.run(main)
    """
    killed = subprocess.Popen([sys.executable, "-c", textwrap.dedent(supervisor), str(witness.path)])
    assert await witness.wait_line() == "ready\n"
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    await witness.wait_gone()


async def test_containment_falls_back_where_wrappers_fail(monkeypatch):
    monkeypatch.setattr(process, "_WRAPPERS", {**process._WRAPPERS, Containment.NAMESPACE: ("false",)})
    assert await find_containment() is Containment.DEATH_SIGNAL
    monkeypatch.setattr(process, "_WRAPPERS", dict.fromkeys(Containment, ("/no/such/wrapper",)))
    assert await find_containment() is Containment.SESSION
