"""Metrics and health over HTTP: where they listen, what they say, and that they never hold up a compile."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import attrs
import pytest
from kit.client import exchange, request
from kit.service import LogLines, running_server
from kit.supervisor import FakeSupervisor, server_status, supervisor_status

from stapsrv.compile.stats import ProcessCounters
from stapsrv.config.addresses import MetricsAddress
from stapsrv.errors import ConfigError
from stapsrv.observe.feed import LiveFeed
from stapsrv.observe.http import HttpLimits
from stapsrv.observe.metrics_server import MetricsListener, open_metrics_listener
from stapsrv.observe.snapshot import Phase, Snapshot
from stapsrv.observe.web.access import Access
from stapsrv.observe.web.site import WebSite
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.status import ServerStatus

pytestmark = pytest.mark.anyio

CROWD = 300


def snapshot(*servers: ServerStatus, phase: Phase = Phase.RUNNING, **facts: object) -> Snapshot:
    return Snapshot(phase=phase, status=supervisor_status(*servers, **facts), counters=ProcessCounters())


class Process:
    """The process that snapshots are of; a test may change it."""

    def __init__(self) -> None:
        self.now = snapshot()
        self.snapshots = 0

    def snapshot(self) -> Snapshot:
        self.snapshots += 1
        return self.now


@contextlib.asynccontextmanager
async def monitoring(
    process: Process, limits: HttpLimits | None = None, site: WebSite | None = None
) -> AsyncIterator[int]:
    """Serve the metrics of a process; yields the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, anyio.fail_after(60):
        listener.setblocking(False)
        served = MetricsListener(listener, "name").serve(
            process.snapshot, log=LogLines().log, limits=limits, site=site
        )
        async with served:
            yield listener.getsockname()[1]


async def get(port: int, path: str, host: str = "x") -> tuple[int, str]:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
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


async def test_web_page_is_beside_metrics_and_health():
    supervisor = FakeSupervisor(server_status(7, nickname="lab"))
    feed = LiveFeed(supervisor.status, supervisor.activity)
    access = Access.at(MetricsAddress("127.0.0.1", 1), host_name="build1", token="0123456789abcdef")
    site = WebSite(feed, counters=ProcessCounters(), activity=supervisor.activity, access=access)
    async with monitoring(Process(), site=site) as port:
        assert (await get(port, "/", "localhost"))[0] == 401
        assert (await get(port, "/", "x"))[0] == 421
        # These need no token, under any name of the host.
        assert await get(port, "/livez", "x") == (200, "ok\n")
        assert (await get(port, "/metrics", "x"))[0] == 200


@pytest.mark.parametrize(
    ("now", "lines"),
    [
        (snapshot(server_status(1), server_status(2)), []),
        (snapshot(phase=Phase.STARTING), ["the process is starting"]),
        (snapshot(server_status(1), phase=Phase.STOPPING), ["the process is stopping"]),
        (
            snapshot(
                server_status(1, State.FAILED, reason="no such\nrelease"),
                server_status(2),
                server_status(3, State.DRAINING, nickname="three"),
                server_status(4, State.STOPPING, wanted=Wanted.DOWN),
            ),
            [r"server 1 is failed: no such\nrelease", "server three is draining"],
        ),
        (
            snapshot(server_status(1), refused=("/etc/x.conf:1: unknown variable",)),
            ["configuration refused: /etc/x.conf:1: unknown variable"],
        ),
    ],
)
async def test_ready_is_when_every_wanted_server_serves(now, lines):
    process = Process()
    process.now = now
    async with monitoring(process) as port:
        status, text = await get(port, "/readyz")
        assert await get(port, "/livez") == (200, "ok\n")
    assert status == (503 if lines else 200)
    assert text.splitlines() == (lines or ["ok"])


async def test_requests_at_once_share_one_rendering():
    process = Process()
    answers = []

    async def ask(port: int) -> None:
        answers.append(await get(port, "/metrics"))

    async with monitoring(process) as port, anyio.create_task_group() as crowd:
        for _ in range(CROWD):
            crowd.start_soon(ask, port)
    assert [status for status, _ in answers] == [200] * CROWD
    assert process.snapshots < CROWD / 4


async def test_compile_is_answered_while_metrics_are_full():
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
            with anyio.fail_after(60):
                answer = await exchange(running.port, request("-p4"))
            assert answer.rc == 0
            assert waiting == CROWD
            crowd.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("fault", "event"),
    [(OSError("no more"), "metrics.failed"), (ZeroDivisionError(), "metrics.crashed")],
)
async def test_failure_of_the_metrics_server_is_logged_and_retried(monkeypatch, fault, event):
    async def fail(*_args, **_names):
        raise fault

    lines = LogLines()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        monkeypatch.setattr("stapsrv.observe.http.accept_forever", fail)
        monkeypatch.setattr("stapsrv.observe.metrics_server._RETRY_S", 0.01)
        async with MetricsListener(listener, "name").serve(Process().snapshot, log=lines.log):
            await lines.wait(event, 3)
            monkeypatch.undo()
            assert (await get(listener.getsockname()[1], "/livez"))[0] == 200


async def test_address_is_logged(tmp_path):
    lines = LogLines()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with MetricsListener(listener, "name").serve(Process().snapshot, log=lines.log):
            assert lines.entries == [{"level": "info", "event": "metrics.listening", "address": "name"}]
            assert (await get(listener.getsockname()[1], "/livez"))[0] == 200


async def test_connections_and_requests_are_counted():
    """What a server does is in the tally that its service was made with."""
    async with running_server() as running:
        counters = running.service.counters
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
    connections = {outcome.value: count for outcome, count in counters.connections.items() if count}
    assert connections == {"request": 2, "failed": 1, "refused": 1}
    requests = {
        (release, result.value): count for (release, result), count in counters.requests.items() if count
    }
    assert requests == {("6.1.0-test", "success"): 1, ("other", "refused"): 1}
    assert attrs.asdict(counters)["answer_bytes"] > 0


def test_metrics_are_not_loaded_without_an_address():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, stapsrv.daemon; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "stapsrv.app" in loaded
    assert not {"h11", "prometheus_client", "jinja2", "stapsrv.observe.metrics_server"} & set(loaded)


REMEDY = "give another address with --metrics or METRICS=, or off"


def refusal(address: MetricsAddress, directory: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught, open_metrics_listener(address, directory=directory):
        raise AssertionError("it is open")
    return str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_taken_metrics_port_is_one_clear_line(host):
    with open_metrics_listener(MetricsAddress(host, 0)) as metrics:
        address = MetricsAddress(host, metrics.socket.getsockname()[1])
        assert metrics.name == str(address)
        assert refusal(address) == f"metrics address {address}: is in use by another program; {REMEDY}"
    with open_metrics_listener(address):
        pass


def test_a_port_below_1024_or_an_address_of_somebody_else():
    assert refusal(MetricsAddress("192.0.2.1", 0)) == (
        f"metrics address 192.0.2.1:0: cannot be used: Cannot assign requested address; {REMEDY}"
    )


def test_socket_has_mode_0660_and_is_removed_at_the_end(tmp_path):
    with open_metrics_listener(MetricsAddress(path=Path("metrics.sock")), directory=tmp_path) as metrics:
        path = tmp_path / "metrics.sock"
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        assert metrics.name == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        address = MetricsAddress(path=path)
        assert refusal(address) == f"metrics address unix:{path}: is in use by another program; {REMEDY}"
        assert path.exists()
    assert os.listdir(tmp_path) == []


def test_a_socket_whose_listener_reads_nothing_is_taken(tmp_path):
    with open_metrics_listener(MetricsAddress(path=tmp_path / "s")), socket.socket(socket.AF_UNIX) as other:
        (tmp_path / "s").unlink()
        other.bind(str(tmp_path / "s"))
        other.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(str(tmp_path / "s"))
        assert "is in use by another program" in refusal(MetricsAddress(path=tmp_path / "s"))
        for client in clients:
            client.close()


def test_a_stale_socket_is_replaced(tmp_path):
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with open_metrics_listener(MetricsAddress(path=path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_file_at_the_path_of_the_socket_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("precious")
    assert refusal(MetricsAddress(path=tmp_path / "file")).startswith(
        f"metrics address unix:{tmp_path}/file: is no socket; "
    )
    assert (tmp_path / "file").read_text() == "precious"


def test_a_relative_path_needs_a_directory():
    assert refusal(MetricsAddress(path=Path("m.sock"))) == (
        "metrics address unix:m.sock: a single server has no directory of its own; give an absolute path"
    )


def test_a_directory_that_is_missing(tmp_path):
    address = MetricsAddress(path=tmp_path / "missing" / "m.sock")
    assert (
        refusal(address) == f"metrics address {address}: cannot be used: No such file or directory; {REMEDY}"
    )
