"""One server through crashes, drains and restarts."""

from __future__ import annotations

import itertools
import socket
import types
from pathlib import Path

import anyio
import pytest
from kit.client import exchange, request

from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError, LifecycleError
from stapsrv.supervisor import managed_server
from stapsrv.supervisor.lifecycle import COMMANDS, Event, State
from stapsrv.supervisor.managed_server import ManagedServer
from stapsrv.supervisor.operations import ServerSpec

pytestmark = pytest.mark.anyio


async def test_restart_keeps_id_and_port(bench):
    async with bench.supervisor() as supervisor:
        (before,) = await supervisor.start([ServerSpec(bench.settings(nickname="one"))])
        changes = []
        (after,) = await supervisor.restart([before.server.id], lambda status: changes.append(status.state))
        assert after.error is None
        assert (after.server.id, after.server.port) == (before.server.id, before.server.port)
        assert changes == [State.STOPPING, State.STARTING, State.SERVING]


async def test_configured_server_that_cannot_be_stays_visible_and_starts_when_it_can(bench):
    async with bench.supervisor() as supervisor:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            settings = bench.settings(nickname="one", port=taken.getsockname()[1])
            await supervisor.start([ServerSpec(settings, "/etc/one.conf")])
            (status,) = supervisor.status().servers
            assert (status.state, status.origin) == (State.FAILED, "/etc/one.conf")
            assert "is in use" in status.reason
            assert bench.records() == {}
        (outcome,) = await supervisor.start([ServerSpec(settings, "/etc/one.conf")])
        assert (outcome.error, outcome.already) == (None, False)


async def test_crash_backs_off_and_recovers_while_neighbours_serve(bench, break_prepare, monkeypatch):
    monkeypatch.setattr(managed_server, "back_off_s", lambda crashes: 0.01 * crashes)
    async with bench.supervisor() as supervisor:
        (neighbour,) = await supervisor.start([ServerSpec(bench.settings(nickname="neighbour"))])
        break_prepare(ZeroDivisionError("a fault"), OSError(5, "another"))
        (outcome,) = await supervisor.start([ServerSpec(bench.settings(nickname="one", max_threads=1))])
        assert outcome.error == "ZeroDivisionError('a fault')"
        changes = []
        server = supervisor._servers[outcome.server.id]
        with anyio.fail_after(60):
            while server.state is not State.SERVING:
                await server._waiters.wait()
                changes.append(server.state)
        assert changes[-2:] == [State.STARTING, State.SERVING]
        assert bench.lines.events().count("server.crashed") == 2
        answer = await exchange(neighbour.server.port, request("-p4", release="6.1.0-test"))
        assert answer.rc == 0


async def test_server_that_backs_off_can_be_stopped(bench, break_prepare):
    async with bench.supervisor() as supervisor:
        break_prepare(ZeroDivisionError("a fault"))
        (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
        assert outcome.server.state is State.BACKING_OFF
        (stopped,) = await supervisor.stop([outcome.server.id])
        assert stopped.error is None
        assert supervisor.status().servers == ()


async def test_drain_resets_newcomers_and_undrain_lets_them_in(bench):
    async with bench.supervisor() as supervisor:
        (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
        (drained,) = await supervisor.drain([outcome.server.id])
        assert (drained.error, drained.server.state) == (None, State.DRAINING)
        with pytest.raises((OSError, anyio.BrokenResourceError, anyio.EndOfStream)):
            await exchange(outcome.server.port, request("-p4", release="6.1.0-test"))
        (undrained,) = await supervisor.undrain([outcome.server.id])
        assert undrained.server.state is State.SERVING
        assert (await exchange(outcome.server.port, request("-p4", release="6.1.0-test"))).rc == 0


async def test_a_log_that_cannot_be_opened_is_its_servers_own_failure(bench):
    async with bench.supervisor() as supervisor:
        bench.unwritable.add(Path("/unwritable/log"))
        bad = bench.settings(nickname="bad", log=Path("/unwritable/log"))
        good = bench.settings(nickname="good", max_threads=1)
        first, second = await supervisor.start([ServerSpec(bad, "/bad.conf"), ServerSpec(good, "/good.conf")])
        assert (first.server.state, first.error) == (
            State.FAILED,
            "log file /unwritable/log: cannot be written",
        )
        assert second.error is None
        # In the supervisor's own log, since it has none.
        assert bench.lines.reasons("server.refused") == ["log file /unwritable/log: cannot be written"]
        bench.unwritable.clear()
        (again,) = await supervisor.restart([first.server.id])
        assert (again.error, again.server.state) == (None, State.SERVING)


# An end with an error.
CRASH = "crash"


class Play:
    """A real managed server over a fake compile server: the test decides what happens, and when.

    What is under way waits for its gate; a fact opens that, and the waiting task goes on a turn later.
    """

    def __init__(self, tasks, log):
        self.launched = 0
        self._log = log
        self._launch = self._delay = anyio.Event()
        self._error = None
        self.address = types.SimpleNamespace(port=1)
        self.server = ManagedServer(
            id=1,
            settings=ServerSettings(nickname="one"),
            origin=None,
            last_port=None,
            prepare=self._prepare,
            open_log=self._open_log,
            tasks=tasks,
            log=log,
            changed=lambda _: None,
            withdraw=self._withdraw,
        )

    def happen(self, what):
        """Give a command, or let what is under way come to an end, if there is any."""
        if what in COMMANDS:
            try:
                self.server.handle(what)
            except LifecycleError:
                assert what in {Event.DRAIN, Event.UNDRAIN}
        elif what is Event.DELAY_OVER:
            self._delay.set()
        else:
            errors = {CRASH: ZeroDivisionError("a fault"), Event.REFUSED: ConfigError("refused")}
            self._error = errors.get(what)
            self._launch.set()

    async def sleep(self, _seconds):
        self._delay = gate = anyio.Event()
        await gate.wait()

    async def serve(self, *, task_status):
        task_status.started()
        await self._pass()

    def stop(self):
        self._launch.set()

    def drain(self):
        pass

    undrain = drain

    async def _withdraw(self, _id):
        await anyio.lowlevel.checkpoint()

    async def _open_log(self, _settings):
        return self._log

    async def _prepare(self, _settings, _log, _port):
        await self._pass()
        return self

    async def _pass(self):
        self.launched += 1
        assert self.launched == 1, "two launches at once"
        try:
            self._launch = gate = anyio.Event()
            await gate.wait()
            error, self._error = self._error, None
            if error is not None:
                raise error
        finally:
            self.launched -= 1


WAYS = {
    State.STARTING: [Event.START],
    State.SERVING: [Event.START, None, Event.READY],
    State.DRAINING: [Event.START, None, Event.READY, None, Event.DRAIN],
    State.STOPPING: [Event.START, None, Event.READY, None, Event.STOP],
    State.BACKING_OFF: [Event.START, None, CRASH],
    State.FAILED: [Event.START, None, Event.REFUSED],
}


async def turn(turns=1):
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("state", WAYS)
async def test_whatever_happens_in_whichever_turn_harms_no_neighbour(bench, monkeypatch, state):
    """Every three events from every state, in one turn of the event loop or in two; None is a turn."""
    events = [*Event, CRASH, None]
    async with anyio.create_task_group() as tasks:
        for rest in itertools.product(events[:-1], events, events[:-1]):
            play = Play(tasks, bench.lines.log)
            monkeypatch.setattr(anyio, "sleep", play.sleep)
            for what in WAYS[state]:
                await turn(8) if what is None else play.happen(what)
            if state is not State.STOPPING:
                await turn(8)
                assert play.server.state is state
            for what in rest:
                await turn() if what is None else play.happen(what)
            await turn(8)
            assert play.launched == (play.server.state in {State.STARTING, State.SERVING, State.DRAINING})
            for _ in range(2):
                play.happen(Event.STOP)
                play.happen(Event.ENDED)
                await turn(8)
            assert play.server.state is State.STOPPED, rest
            assert play.launched == 0


async def test_a_drained_server_that_crashes_comes_back_drained(bench, monkeypatch):
    async with anyio.create_task_group() as tasks:
        play = Play(tasks, bench.lines.log)
        monkeypatch.setattr(anyio, "sleep", play.sleep)
        for what in [*WAYS[State.DRAINING], CRASH, Event.DELAY_OVER, Event.READY]:
            await turn(8)
            if what is not None:
                play.happen(what)
        await turn(8)
        assert play.server.state is State.DRAINING
        play.happen(CRASH)
        await turn(8)
        play.server.start(undrain=False)
        assert play.server.state is State.STARTING
        await turn(8)
        play.happen(Event.READY)
        await turn(8)
        assert play.server.state is State.DRAINING
        for what in [Event.RESTART, Event.READY]:
            play.happen(what)
            await turn(8)
        assert play.server.state is State.SERVING
        play.happen(Event.STOP)
