"""Requests that are broken off during a real compile."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest
from kit.real import CompilerGate, finish, is_listening, vermagic, wait_until
from kit.trees import ProcessObserver

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture
def gate(tmp_path):
    gate = CompilerGate(tmp_path / "gate", visible=tmp_path / "visible")
    yield gate
    gate.close()


def begin_compile(stap, server, gate):
    """Start a client, and return it with the server's process tree as soon as the compiler is at the gate."""
    client = stap.begin_via(server.port, "-p4", "-I", gate.directory, "-e", gate.SCRIPT)
    gate.wait_reached(client)
    tree = ProcessObserver(server.pid)
    assert {"stap", "make", "cc1"} <= set(tree.names)
    return client, tree


@BACKENDS
@pytest.mark.parametrize("leave", ["interrupted", "killed"])
def test_leaving_client_ends_its_compile(serve, stap, gate, leave, backend):
    server = serve(gate.option, backend=backend)
    client, tree = begin_compile(stap, server, gate)
    if leave == "killed":
        client.kill()
    else:
        interrupt_thrice(client)
    tree.wait_gone()
    assert finish(client).status != 0
    assert stap.via(server.port, "-p1", "-e", "probe begin { exit() }").status == 0


def interrupt_thrice(client: subprocess.Popen[str]) -> None:
    """Press Ctrl-C three times: the client goes on waiting after the first two."""
    for _ in range(3):
        client.send_signal(signal.SIGINT)
        # Nothing but /proc tells that a signal was taken.
        wait_until(lambda: client.poll() is not None or not is_signal_pending(client.pid))


def is_signal_pending(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return any(int(mask, 16) for mask in re.findall(r"^(?:Shd|Sig)Pnd:\s+(\w+)$", status, re.MULTILINE))


@BACKENDS
def test_stopping_server_lets_a_request_finish(serve, stap, gate, backend):
    # On a busy machine what is left of a compile takes longer than the five seconds that it has by default.
    server = serve(gate.option, "--drain-timeout", 60, backend=backend)
    client, tree = begin_compile(stap, server, gate)
    server.signal(signal.SIGTERM)
    server.log.wait(r": Waiting for 1 outstanding requests to complete\.\.\.$")
    assert not is_listening(server.port)
    gate.open()
    ran = finish(client)
    assert ran.status == 0, ran.stderr
    assert vermagic(stap.place / ran.module) == stap.installation.release
    assert server.wait() == 0
    tree.wait_gone(0)
    assert server.log.has(" complete$", 1)


@BACKENDS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_requests_at_once(serve, stap, gate, backend, number):
    # By itself the compile would end neither before the gate opens nor before that time is over.
    server = serve(gate.option, "--drain-timeout", "1h", backend=backend)
    client, tree = begin_compile(stap, server, gate)
    server.signal(number)
    server.log.wait("Waiting for 1 outstanding requests")
    server.signal(number)
    assert server.wait() == 0
    tree.wait_gone(0)
    ran = finish(client)
    assert ran.status == 1
    assert "Server: The compile was ended: the server is stopping; try again later\n" in ran.stderr
    assert server.log.has(f"^Received signal {number}, exiting$", 2)
    assert server.log.count("complete$") == 0
