"""Actions and tools find their modules; what is typed wrong is one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

PROGRAM = [sys.executable, "-c", "from stapsrv.control.cli.main import main; main()"]


@pytest.fixture
def environ() -> dict[str, str]:
    return {**os.environ, "STAPSRV_MDNS": "no"}


@pytest.mark.parametrize(
    ("words", "status", "err"),
    [
        ([], 2, r"no action given; give one of start, "),
        (["strat"], 2, r"unknown action 'strat'; did you mean start\?"),
        (["start", "--prot", "1"], 2, r"unknown option '--prot'; did you mean --port\?"),
        (["start", "operand"], 2, r"unexpected argument 'operand'; see stap-server --help"),
        (["start", "-r"], 2, r"-r: needs a value"),
        (["status", "--json", "--classic"], 2, r"--json and --classic exclude each other"),
        (["status", "-c", "/missing"], 1, r"/missing: no such file; give -c a global configuration file"),
        (["reload", "-n", "x"], 2, r"reload takes no servers: "),
    ],
)
def test_faults_are_one_line(words, status, err, environ):
    ran = subprocess.run(
        [*PROGRAM, *words], capture_output=True, text=True, env=environ, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout) == (status, "")
    assert re.fullmatch(rf"stap-server: {err}.*\n", ran.stderr)


@pytest.mark.parametrize(
    ("words", "begins", "contains"),
    [
        (["help"], "usage: stap-server ACTION", "example:\n  stap-server start"),
        (["--help"], "usage: stap-server ACTION", "condrestart"),
        (["help", "drain"], "usage: stap-server drain [SERVERS] [options]", "--timeout S"),
        (["start", "--help"], "usage: stap-server start [SERVERS]", "  stap-server start -r 6.1.0-56-amd64"),
        (["ctl", "try-restart", "--help"], "usage: stap-server try-restart [SERVERS]", "start no other"),
        (["reload", "--help"], "usage: stap-server reload [options]", "--no-wait"),
        (["help", "nonsense"], "usage: stap-server ACTION", ""),
        (["--version"], "stap-server (stapsrv) ", "."),
        (["cert", "--help"], "usage: stap-server cert", "renew"),
        (["mok", "--help"], "usage: stap-server mok", "list"),
        (["cache", "--help"], "usage: stap-server cache", "verify"),
        (["browse", "--help"], "usage: stap-server browse", "--timeout"),
        (["bench", "--help"], "usage: stap-server bench", "--requests N"),
    ],
)
def test_help_and_version(words, begins, contains, environ):
    ran = subprocess.run(
        [*PROGRAM, *words], capture_output=True, text=True, env=environ, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(begins)
    assert contains in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 110
