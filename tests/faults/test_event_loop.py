"""Nothing slow on the event loop: what a request does to files, it does in threads."""

from __future__ import annotations

import socket

import anyio.to_thread
import pytest
from kit.blocking import watched_loop
from kit.client import Answer, frame, pack, request, trusting
from kit.stap import make_stap

from stapsrv.supervisor.operations import ServerSpec

pytestmark = pytest.mark.anyio

# A child's death signal is tied to the thread that forks it (see stapsrv/process.py).
FORK = "process.py spawn: "


def ask(port: int, payload: bytes) -> bytes:
    """Ask as another process would: this runs in a thread of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with trusting().wrap_socket(connection) as tls:
            tls.sendall(frame(payload))
            answer = bytearray()
            while data := tls.recv(65536):
                answer += data
            return bytes(answer)


async def test_the_detector_sees_what_blocks(tmp_path):
    from stapsrv.compile.engine import workspace

    with watched_loop() as found:
        await anyio.to_thread.run_sync(workspace.sweep, tmp_path)
        assert found == []
        workspace.sweep(tmp_path)
    assert any("compile/engine/workspace.py" in call for call in found), found


async def test_requests_and_status(bench, tmp_path):
    release = "6.1.0-test"
    make_stap(bench.runtime.engine.stap.path, 'echo out; echo ELF >"$answer/x.ko"; echo code >"$answer/x.c"')
    requests = [
        request(
            "-p4",
            "--privilege=stapusr",
            "script/x.stp",
            release=release,
            **{"script/x.stp": "probe begin {}"},
        ),
        request("-p4", release="no such kernel"),
        pack([("version", "4.8")]),
        b"no zip",
        b"",
    ]
    async with bench.supervisor() as supervisor:
        (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
        for payload in requests:  # what is imported and read once
            await anyio.to_thread.run_sync(ask, outcome.server.port, payload)
        with watched_loop() as found:
            for payload in requests:
                answer = await anyio.to_thread.run_sync(ask, outcome.server.port, payload)
                if payload == requests[0]:
                    assert Answer.of(answer).files.keys() == {"x.ko", "x.ko.sgn", "x.c"}
            supervisor.status()
    assert {call for call in found if not call.startswith(FORK)} == set()


async def test_a_first_compile(bench):
    """The server's own start is let pass: it reads and writes some small files before anybody is served."""
    make_stap(bench.runtime.engine.stap.path, "exit 1")
    async with bench.supervisor() as supervisor:
        with watched_loop() as found:
            await supervisor.start([ServerSpec(bench.settings(warmup=True))])
            await bench.lines.wait("release.unhealthy")
            await anyio.wait_all_tasks_blocked()
    own = ("compile/", "supervisor/warm", "system/directory_watcher")
    # What the kernel keeps in /proc is in memory.
    passed = (FORK, "process.py step_back: ")
    assert {call for call in found if call.startswith(own) and not call.startswith(passed)} == set()
