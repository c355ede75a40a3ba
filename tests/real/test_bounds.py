"""The real client with a server that turns it away."""

from __future__ import annotations

import contextlib
import shutil
import socket

import pytest
from kit.real import CompilerGate, finish, without_client_lines

SCRIPT = ("-p1", "-e", "probe begin { exit() }")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_client_returns_to_a_full_server(serve, stap, backend):
    server = serve("--max-connections=1", backend=backend)
    with socket.create_connection(("127.0.0.1", server.port)):
        client = stap.begin_via(server.port, *SCRIPT)
        server.log.wait("Connection from .* was reset: 1 connections are open already$")
        assert client.poll() is None
    ran = finish(client)
    assert (ran.status, ran.stderr.count("Server:")) == (0, 0), ran.stderr
    assert "# parse tree dump" in ran.stdout


def test_client_that_waited_too_long_for_a_worker_reads_why(serve, stap, tmp_path):
    with contextlib.closing(CompilerGate(tmp_path / "gate", visible=tmp_path / "visible")) as gate:
        server = serve(gate.option, "--max-threads=0", "--queue-timeout=300ms")
        first = stap.begin_via(server.port, "-p4", "-I", gate.directory, "-e", gate.SCRIPT)
        gate.wait_reached(first)
        ran = without_client_lines(stap.via(server.port, *SCRIPT))
        gate.open()
        assert finish(first).status == 0
    assert (ran.status, ran.stdout, ran.stderr) == (
        1,
        "",
        "Server: The server is busy: no worker was free within 0.3 seconds; try again later\n",
    )


def test_denied_client_reads_why_and_does_not_return(serve, stap):
    server = serve("--allow=127.0.0.0/8", "--deny=127.0.0.1", "--listen=127.0.0.1", "--listen=127.0.0.3")
    ran = stap.via(server.port, "-vvv", *SCRIPT)
    assert ran.status == 1
    assert "SSL_ERROR_ACCESS_DENIED_ALERT" in ran.stderr
    assert "Unable to connect to a server." in ran.stderr
    assert server.log.has("^Connection from 127.0.0.1:.* was denied: ", 1)
    assert server.log.has("^Using network address 127.0.0.[13]:", 2)


@pytest.mark.parametrize(
    ("options", "limit", "both"), [((), 850, 0), (("--limit-cpu=70",), 70, 1)], ids=["default", "set"]
)
def test_limit_in_the_file_of_stap_goes_with_the_server_s(serve, stap, tmp_path, options, limit, both):
    """It goes before the server's default; of two that were set the lower one holds."""
    rc = stap.directory / "rc"
    rc.write_text("--rlimit-cpu=850\n")
    program = tmp_path / "stap"
    limits = tmp_path / "limits"
    limits.mkdir()
    # What make and the compiler inherit from stap, which shows in no answer.
    program.write_text(
        f'#!/bin/sh\n[ $1 = --version ] || {{ {shutil.which("stap")} "$@"; code=$?;'
        f' ulimit -H -t >{limits}/hard; exit $code; }}\nexec {shutil.which("stap")} "$@"\n'
    )
    program.chmod(0o755)
    try:
        server = serve(*options, "--sandbox-write", tmp_path, SYSTEMTAP_STAP=str(program))
        ran = stap.via(server.port, "-p1", "-e", f"probe begin {{ println({limit}) exit() }}")
    finally:
        rc.unlink()
    assert ran.status == 0, ran.stderr
    assert "Unable to set resource limits" not in ran.stderr
    # Before stap starts, its limit is the server's, with five seconds to spare.
    assert int((limits / "hard").read_text()) == limit + 5
    assert server.log.has("^LIMIT_CPU=.* and --rlimit-cpu=850 in stap's rc file are set", both)
