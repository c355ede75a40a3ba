"""Commands under way: what is reported to them, and that their end is noticed."""

from __future__ import annotations

import contextlib

import pytest
from kit.supervisor import server_status

from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.operations import CommandsUnderWay, ServerSpec
from stapsrv.supervisor.state.stat_files import FIRST_ID


@pytest.mark.anyio
async def test_progress_is_reported_of_every_server_of_a_command(bench):
    async with bench.supervisor() as supervisor:
        told = []
        specs = [ServerSpec(bench.settings(max_threads=number)) for number in (1, 2, 3)]
        await supervisor.start(specs, lambda status: told.append((status.id - FIRST_ID, status.state)))
        assert sorted(told, key=lambda change: change[0]) == [
            (number, state) for number in range(3) for state in (State.STARTING, State.SERVING)
        ]
        told.clear()
        ids = [server.id for server in supervisor.status().servers]
        await supervisor.stop(ids, lambda status: told.append((status.id - FIRST_ID, status.state)))
        assert sorted(told, key=lambda change: change[0]) == [
            (number, state) for number in range(3) for state in (State.STOPPING, State.STOPPED)
        ]


def test_change_is_reported_to_the_commands_that_follow_the_server_alone():
    first, second = [], []
    commands = CommandsUnderWay(lambda: None)
    with commands.begin(first.append) as followed, commands.begin(second.append):
        followed.add(1)
        commands.report_change(1, lambda: server_status(1))
        commands.report_change(2, lambda: server_status(2))
    commands.report_change(1, lambda: server_status(1))
    assert [status.id for status in first] == [1]
    assert second == []


def test_end_of_a_command_is_noticed_when_it_is_no_longer_counted():
    counts = []
    commands = CommandsUnderWay(lambda: counts.append(len(commands)))
    with contextlib.suppress(ZeroDivisionError), commands.begin(None):
        with commands.begin(None):
            assert len(commands) == 2
        raise ZeroDivisionError
    assert counts == [1, 0]
