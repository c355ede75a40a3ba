"""Metrics and health of a process, and that they never hold up a compile."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import anyio
import attrs
import pytest
from kit.client import exchange, request
from kit.control import server_status, supervisor_status
from kit.service import LogLines, running_server

from stapsrv.compile.stats import ProcessCounters
from stapsrv.observe.http import HttpLimits
from stapsrv.observe.metrics_server import MetricsListener, monitored
from stapsrv.observe.monitor import Monitor
from stapsrv.observe.snapshot import Phase, Snapshot
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.status import ServerStatus

pytestmark = pytest.mark.anyio

CROWD = 300


def facts(*servers: ServerStatus, phase: Phase = Phase.RUNNING, **more: object) -> Snapshot:
    return Snapshot(phase=phase, status=supervisor_status(*servers), tally=ProcessCounters(), **more)


class Process:
    """What is looked at; a test may change it."""

    def __init__(self) -> None:
        self.facts = facts()
        self.looks = 0

    def look(self) -> Snapshot:
        self.looks += 1
        return self.facts


@contextlib.asynccontextmanager
async def monitoring(process: Process, limits: HttpLimits | None = None) -> AsyncIterator[int]:
    """Monitor a process; yields the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, anyio.fail_after(60):
        listener.setblocking(False)
        async with anyio.create_task_group() as tasks:
            monitor = Monitor(listener, process.look, log=LogLines().log, limits=limits)
            tasks.start_soon(monitor.run)
            yield listener.getsockname()[1]
            tasks.cancel_scope.cancel()


async def get(port: int, path: str) -> tuple[int, str]:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = b""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                data += await stream.receive()
    head, _, body = data.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


async def test_pages():
    async with monitoring(Process()) as port:
        assert await get(port, "/livez") == (200, "ok\n")
        assert await get(port, "/readyz") == (200, "ok\n")
        assert await get(port, "/") == (404, "there are /metrics, /livez and /readyz\n")
        status, text = await get(port, "/metrics")
    assert status == 200
    assert '\nstapsrv_servers{state="serving"} 0.0\n' in text


@pytest.mark.parametrize(
    ("looked_at", "lines"),
    [
        (facts(server_status(1), server_status(2)), []),
        (facts(phase=Phase.STARTING), ["the process is starting"]),
        (facts(server_status(1), phase=Phase.STOPPING), ["the process is stopping"]),
        (
            facts(
                server_status(1, State.FAILED, reason="no such\nrelease"),
                server_status(2),
                server_status(3, State.DRAINING, nickname="three"),
                server_status(4, State.STOPPING, wanted=Wanted.DOWN),
            ),
            [r"server 1 is failed: no such\nrelease", "server three is draining"],
        ),
        (
            facts(server_status(1), faults=("/etc/x.conf:1: unknown variable",)),
            ["configuration refused: /etc/x.conf:1: unknown variable"],
        ),
    ],
)
async def test_ready_is_when_every_wanted_server_serves(looked_at, lines):
    process = Process()
    process.facts = looked_at
    async with monitoring(process) as port:
        status, text = await get(port, "/readyz")
        assert await get(port, "/livez") == (200, "ok\n")
    assert status == (503 if lines else 200)
    assert text.splitlines() == (lines or ["ok"])


async def test_a_crowd_is_told_the_same_and_each_is_told():
    process = Process()
    answers = []

    async def ask(port: int) -> None:
        answers.append(await get(port, "/metrics"))

    async with monitoring(process) as port, anyio.create_task_group() as crowd:
        for _ in range(CROWD):
            crowd.start_soon(ask, port)
    assert [status for status, _ in answers] == [200] * CROWD
    assert process.looks < CROWD / 4


async def test_a_compile_is_answered_while_nobody_gets_metrics():
    """Silent peers take all the room there, and a crowd waits behind them."""
    limits = HttpLimits(connections=4, request_s=50, total_s=50)
    waiting = 0

    async def ask(port: int) -> None:
        nonlocal waiting
        waiting += 1
        await get(port, "/metrics")
        waiting -= 1

    async with running_server() as running, monitoring(Process(), limits) as port:
        async with contextlib.AsyncExitStack() as peers, anyio.create_task_group() as crowd:
            for _ in range(limits.connections):
                await peers.enter_async_context(await anyio.connect_tcp("127.0.0.1", port))
            for _ in range(CROWD):
                crowd.start_soon(ask, port)
            with anyio.fail_after(20):
                answer = await exchange(running.port, request("-p4"))
            assert answer.rc == 0
            assert waiting == CROWD
            crowd.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("fault", "event"),
    [(OSError("no more"), "metrics.failed"), (ZeroDivisionError(), "metrics.crashed")],
)
async def test_a_failure_of_its_own_is_nobody_elses(monkeypatch, fault, event):
    async def fail(*_args, **_names):
        raise fault

    lines = LogLines()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        monkeypatch.setattr("stapsrv.observe.http.accept_forever", fail)
        monkeypatch.setattr("stapsrv.observe.monitor._PAUSE_S", 0.01)
        async with monitored(MetricsListener(listener, "name"), Process().look, log=lines.log):
            await lines.wait(event, 3)
            monkeypatch.undo()
            assert (await get(listener.getsockname()[1], "/livez"))[0] == 200


async def test_nothing_without_a_door():
    lines = LogLines()
    async with monitored(None, Process().look, log=lines.log):
        assert lines.entries == []


async def test_the_log_tells_where(tmp_path):
    lines = LogLines()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with monitored(MetricsListener(listener, "name"), Process().look, log=lines.log):
            assert lines.entries == [{"level": "info", "event": "metrics.listening", "address": "name"}]
            assert (await get(listener.getsockname()[1], "/livez"))[0] == 200


async def test_sessions_and_the_server_count():
    """What a server does is in the tally that its service was made with."""
    async with running_server() as running:
        tally = running.service.counters
        await exchange(running.port, request("-p4"))
        await exchange(running.port, request("-p4", release="9.9"))
        async with await anyio.connect_tcp("127.0.0.1", running.port) as stream:
            await stream.send(b"no TLS at all")
        await running.lines.wait("connection.failed")
        await running.lines.wait("request.summary", 2)
        running.server.drain()
        with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream, OSError):
            async with await anyio.connect_tcp("127.0.0.1", running.port) as stream:
                await stream.receive()
        await running.lines.wait("connection.refused")
        await running.server.wait_idle()
    connections = {outcome.value: count for outcome, count in tally.connections.items() if count}
    assert connections == {"request": 2, "failed": 1, "refused": 1}
    requests = {
        (release, result.value): count for (release, result), count in tally.requests.items() if count
    }
    assert requests == {("6.1.0-test", "success"): 1, ("other", "refused"): 1}
    assert attrs.asdict(tally)["answer_bytes"] > 0


def test_who_has_no_use_for_it_does_not_load_it():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, stapsrv.daemon; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "stapsrv.observe.metrics_server" in loaded
    assert not {"h11", "prometheus_client", "stapsrv.observe.monitor"} & set(loaded)
