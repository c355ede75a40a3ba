"""One server through crashes, drains and restarts."""

from __future__ import annotations

import socket

import anyio
import pytest
from kit.client import exchange, request

from stapsrv.supervisor import managed_server
from stapsrv.supervisor.lifecycle import State
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
        with anyio.fail_after(20):
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
