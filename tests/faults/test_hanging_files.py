"""A file system that hangs, under the temporary directory or the certificates of a whole daemon.

There is none to be had for a test, so calls into it hang as they would.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kit.faulty import environment, faulty_server, receive
from kit.stap import MAKES

HANGS = """
import stapsrv.compile.engine.workspace, stapsrv.identity.store
import stapsrv.system.blocking, stapsrv.system.directory_watcher
import contextlib, pathlib, functools
def hang():
    with contextlib.suppress(FileNotFoundError):
        pathlib.Path(GATE).read_bytes()
def hanging(owner, name):
    called = getattr(owner, name)
    @functools.wraps(called)
    def call(*args, **names):
        hang()
        return called(*args, **names)
    setattr(owner, name, call)
limits = stapsrv.system.blocking.BlockingCalls.__init__.__kwdefaults__
limits.update(timeout_s=1.0, grace_s=0.1, max_abandoned=4)
"""


class Gate:
    """A named pipe that calls read first: they hang until it is opened."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "gate"
        self._held = contextlib.ExitStack()

    def shut(self) -> None:
        os.mkfifo(self.path)

    def wait_met(self) -> None:
        """Wait until a call hangs."""
        self._held.enter_context(self.path.open("wb"))

    def open(self) -> None:
        """Let all go on: those that hang, and those to come."""
        with self.path.open("r+b", buffering=0):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        self._held.close()


@pytest.fixture
def gate(tmp_path):
    with contextlib.closing(Gate(tmp_path)) as gate:
        yield gate


def patched(gate: Gate, name: str) -> str:
    owner, _, attribute = name.rpartition(".")
    return f"GATE = {str(gate.path)!r}\n{HANGS}\nhanging({owner}, {attribute!r})\n"


def test_hanging_temporary_directory_refuses_clients_in_time(tmp_path, build_tree, identity, backend, gate):
    """The server still stops on a signal, and works again when the directory does."""
    patch = patched(gate, "stapsrv.compile.engine.workspace.Workspace.make_request_directory")
    with faulty_server(tmp_path, build_tree, identity, patch=patch, backend=backend) as server:
        assert server.ask(MAKES).rc == 0
        gate.shut()
        clients = [server.send(f"{MAKES} echo {number}") for number in range(6)]
        for client in clients:
            told = receive(client).stderr
            assert told.startswith("Server: The server has trouble with its temporary directory: ")
            assert told.endswith(("no answer within 1 seconds\n", " calls hang already\n"))
        took = []
        for _ in range(3):
            began = time.monotonic()
            assert "calls hang already" in server.ask(MAKES).stderr
            took.append(time.monotonic() - began)
        # Had they waited, it would have been for this long at least, however busy this machine is.
        assert min(took) < 1.0
        gate.open()
        # Directories that were made when nobody waited for them any more are removed.
        assert server.left_over(threads=2) == []
        assert server.ask(MAKES).rc == 0
        gate.shut()
        waiting = server.send("the last")
        gate.wait_met()
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0
        assert receive(waiting).rc == 1
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize(
    "call",
    ["identity.store.LiveIdentity.is_current", "system.directory_watcher.DirectoryWatcher.watch_files"],
)
def test_hanging_certificates_leave_the_loaded_identity_serving(
    tmp_path, build_tree, identity, backend, gate, call
):
    patch = patched(gate, f"stapsrv.{call}")
    with faulty_server(tmp_path, build_tree, identity, patch=patch, backend=backend) as server:
        gate.shut()
        for _ in range(3):
            assert server.ask(MAKES).rc == 0
        server.wait_log("could not be renewed")
        server.wait_log(re.escape(f"{identity}: its file system hangs: no answer within 1 seconds"))
        assert server.ask(MAKES).rc == 0
        gate.open()
        assert server.left_over(threads=2) == []
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("recovers", [True, False])
def test_hanging_log_costs_lines_and_no_answer(tmp_path, build_tree, identity, backend, gate, recovers):
    """Neither does it hold up the end, which waits for it a bounded time."""
    patch = patched(gate, "stapsrv.observe.sinks.FileSink.write").replace(
        "contextlib,", "stapsrv.observe.sinks, contextlib,"
    )
    with faulty_server(tmp_path, build_tree, identity, patch=patch, backend=backend) as server:
        gate.shut()
        for _ in range(3):
            assert server.ask(MAKES).rc == 0
        before = server.log_text()
        server.process.send_signal(signal.SIGHUP)
        assert server.ask(MAKES).rc == 0
        assert server.log_text() == before
        if recovers:
            gate.open()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0
    told = server.log_text().count("Options passed from the client")
    assert told == (4 if recovers else 0)
    assert "Traceback" not in server.log_text()


def test_hanging_build_tree_fails_the_start_in_one_line(tmp_path, build_tree, identity, backend, gate):
    gate.shut()
    patch = patched(gate, "stapsrv.config.settings.ServerSettings.served_releases")
    patch = patch.replace("contextlib,", "stapsrv.config.settings, contextlib,")
    program = f"{patch}\nfrom stapsrv.daemon import main; main()"
    (tmp_path / "tmp").mkdir()
    failed = subprocess.run(
        [sys.executable, "-c", program, "-r", build_tree, "--ssl", identity, "--backend", backend],
        env=environment(tmp_path, tmp_path / "tmp"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == (
        "stap-serverd: a build tree, or another directory of the server, cannot be looked at: "
        "no answer within 1 seconds; see which file system hangs"
    )
    assert "Traceback" not in failed.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_second_signal_ends_a_hanging_server(tmp_path, build_tree, identity, backend, gate):
    """Also one that hangs in a thread for which the event loop or the interpreter would wait."""
    patch = patched(gate, "stapsrv.compile.handler.parse_request").replace(
        "contextlib,", "stapsrv.system.force_exit, stapsrv.compile.handler, contextlib,"
    )
    patch += "stapsrv.system.force_exit.force_exit_after.__kwdefaults__.update(within_s=1.0)\n"
    with faulty_server(tmp_path, build_tree, identity, patch=patch, backend=backend) as server:
        gate.shut()
        with server.send(MAKES):
            gate.wait_met()
            server.process.send_signal(signal.SIGTERM)
            server.wait_log("Received signal")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait() == 1
    assert "Something hangs" in server.log_text()
