"""A command in a task of its own: its progress, its end, and what happens when nobody waits."""

from __future__ import annotations

import anyio
import pytest
from kit.service import LogLines
from kit.supervisor import server_status

from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.control.server.task import CommandTask
from stapsrv.errors import ConfigError, ControlError
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.operations import Outcome

pytestmark = pytest.mark.anyio

REFUSED = [Outcome(None, already=False, error="nickname")]


async def refuse(_report):
    return REFUSED


async def test_changes_come_in_order_and_then_none():
    async def command(report):
        report(server_status(7, State.STARTING))
        report(server_status(7, State.SERVING))
        return REFUSED

    task = CommandTask(command, LogLines().log)
    with anyio.fail_after(60):
        await task.run()
        states = [(await task.wait_step(anyio.current_time() + 60)).state for _ in range(2)]
        assert states == [State.STARTING, State.SERVING]
        assert await task.wait_step(anyio.current_time() + 60) is None
    assert (task.ended, task.outcomes, task.latest[7].state) == (True, REFUSED, State.SERVING)


async def test_wait_ends_at_the_deadline_though_the_command_goes_on():
    opened = anyio.Event()

    async def command(_report):
        await opened.wait()
        return REFUSED

    task = CommandTask(command, LogLines().log)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(task.run)
            assert await task.wait_step(anyio.current_time() + 0.01) is None
            assert not task.ended
            opened.set()
            assert await task.wait_step(anyio.current_time() + 60) is None
    assert task.ended


@pytest.mark.parametrize(
    ("fault", "code", "event"),
    [
        (ConfigError("is bad", where="/x:1"), Code.FAILED, "control.failed"),
        (TypeError("a fault of ours"), Code.INTERNAL_ERROR, "control.crashed"),
    ],
)
async def test_fault_of_a_command_is_logged_and_raised_for_who_waits(fault, code, event):
    async def command(_report):
        raise fault

    lines = LogLines()
    task = CommandTask(command, lines.log)
    await task.run()
    assert lines.events() == [event]
    with pytest.raises(ControlError) as caught:
        assert task.outcomes
    assert caught.value.code == code
    assert str(caught.value) == (
        str(fault) if code == Code.FAILED else "internal error; see the supervisor's log"
    )


@pytest.mark.parametrize(("left", "events"), [(False, []), (True, ["control.failed"])])
async def test_refusals_are_logged_only_if_nobody_waits(left, events):
    lines = LogLines()
    task = CommandTask(refuse, lines.log)
    if left:
        task.leave()
    await task.run()
    assert lines.events() == events


async def test_slow_reader_misses_the_oldest_changes_but_no_outcome():
    async def command(report):
        for number in range(1025):
            report(server_status(number))
        return REFUSED

    task = CommandTask(command, LogLines().log)
    await task.run()
    assert (await task.wait_step(anyio.current_time() + 60)).id == 1
    assert task.outcomes == REFUSED
