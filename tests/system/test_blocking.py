"""Calls into file systems that hang: bounded, abandoned, undone, and nobody else's trouble."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import anyio
import pytest

from stapsrv.system.blocking import BlockingCalls

pytestmark = pytest.mark.anyio


class Hang:
    """A call that does not return before it is let go.

    Attributes:
        began: set when somebody calls.
        undone: what was given back after it.
    """

    def __init__(self) -> None:
        self.began = threading.Event()
        self.undone: list[object] = []
        self.undoing = threading.Event()
        self._go = threading.Event()

    def __call__(self) -> str:
        self.began.set()
        self._go.wait()
        return "made"

    def let_go(self) -> None:
        self._go.set()

    def undo(self, made: object) -> None:
        self.undone.append(made)
        self.undoing.set()


@pytest.fixture
def hang():
    made = Hang()
    yield made
    made.let_go()


async def wait_for(event: threading.Event) -> None:
    assert await anyio.to_thread.run_sync(event.wait, 60)


async def wait_none_abandoned(work: BlockingCalls) -> None:
    with anyio.fail_after(60):
        while work.abandoned:
            # A thread that ends tells nobody.
            await anyio.lowlevel.checkpoint()


async def test_result_and_error_of_the_call_are_passed_on():
    work = BlockingCalls()
    assert await work.run(lambda: 42) == 42
    with pytest.raises(FileNotFoundError):
        await work.run(lambda: os.stat("/missing"))
    assert await work.run(threading.current_thread) is not threading.main_thread()


async def test_hanging_call_times_out_and_is_cleaned_up_when_it_returns(hang):
    work = BlockingCalls(timeout_s=0.1, grace_s=0.1)
    with pytest.raises(TimeoutError) as caught:
        await work.run(hang, cleanup=hang.undo)
    assert (caught.value.errno, caught.value.strerror) == (errno.ETIMEDOUT, "no answer within 0.1 seconds")
    assert work.abandoned == 1
    assert await work.run(lambda: 42, timeout_s=60) == 42
    hang.let_go()
    await wait_for(hang.undoing)
    assert hang.undone == ["made"]
    await wait_none_abandoned(work)


async def test_calls_are_refused_while_too_many_hang(hang):
    work = BlockingCalls(timeout_s=0.05, grace_s=0.05, max_abandoned=3)
    for _ in range(3):
        with pytest.raises(TimeoutError, match="no answer"):
            await work.run(hang)
    before = threading.active_count()
    with pytest.raises(TimeoutError, match="3 calls hang already"):
        await work.run(lambda: 42)
    assert threading.active_count() == before
    hang.let_go()
    await wait_none_abandoned(work)
    assert await work.run(lambda: 42, timeout_s=60) == 42


async def test_threads_are_bounded_and_the_wait_for_one_times_out(hang):
    work = BlockingCalls(max_threads=2, timeout_s=0.3, grace_s=0.1)
    before = threading.active_count()
    timed_out = 0

    async def call() -> None:
        nonlocal timed_out
        with pytest.raises(TimeoutError):
            await work.run(hang)
        timed_out += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(call)
        await wait_for(hang.began)
        assert threading.active_count() - before <= 3  # with the one that waits for the event
    assert timed_out == 10


async def test_cancelled_call_gets_its_grace_and_is_cleaned_up(hang):
    work = BlockingCalls(grace_s=60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: work.run(hang, cleanup=hang.undo))
        await wait_for(hang.began)
        tasks.cancel_scope.cancel()
        hang.let_go()
    assert hang.undone == ["made"]
    assert work.abandoned == 0


async def test_cancellation_does_not_wait_for_a_hanging_call(hang):
    work = BlockingCalls(grace_s=0.1)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: work.run(hang, cleanup=hang.undo))
            await wait_for(hang.began)
            tasks.cancel_scope.cancel()
    assert (hang.undone, work.abandoned) == ([], 1)
    hang.let_go()
    await wait_for(hang.undoing)


async def test_failure_to_start_a_thread_is_an_os_error(monkeypatch):
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    work = BlockingCalls()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="no thread can be started"):
            await work.run(lambda: 42)
    assert await work.run(lambda: 42) == 42


@pytest.mark.parametrize("late", [True, False])
def test_process_ends_while_a_call_hangs(anyio_backend_name, late):
    """Or while one returns that nobody, and no event loop, waits for any more."""
    script = """if True:
        import anyio, sys, threading
        from stapsrv.system.blocking import BlockingCalls
        go = threading.Event()
        async def main():
            work = BlockingCalls(timeout_s=0.1, grace_s=0.1)
            try:
                await work.run(go.wait)
            except TimeoutError:
                print("in time")
        anyio.run(main, backend=sys.argv[1])
        if sys.argv[2] == "True":
            go.set()
    """
    done = subprocess.run(
        [sys.executable, "-c", script, anyio_backend_name, str(late)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("in time\n", "")
