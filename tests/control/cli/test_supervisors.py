"""``stap-server start -P``: asked for on the terminal, and on nobody's command line."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "from stapsrv.control.cli.main import main; main()"


@pytest.fixture
def environ(tmp_path) -> dict[str, str]:
    config = tmp_path / "global.conf"
    config.write_text(f"CONFIG_PATH={tmp_path}/conf.d\nSTAT_PATH={tmp_path}/stat\nLOG_FILE={tmp_path}/log\n")
    return {**os.environ, "SYSTEMTAP_DIR": f"{tmp_path}/systemtap", "TMPDIR": str(tmp_path)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root's servers are another user's, who has no access here")
def test_password_typed_on_the_terminal_protects_the_key(tmp_path, environ, build_tree):
    options = ["-c", f"{tmp_path}/global.conf"]
    server = ["-r", str(build_tree), "--ssl", f"{tmp_path}/ssl", "-n", "one"]
    child, terminal = pty.fork()
    if not child:
        os.execve(sys.executable, [sys.executable, "-c", PROGRAM, "start", "-P", *options, *server], environ)
    shown = b""
    while b"database: " not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, b"correct horse\n")
    try:
        while more := os.read(terminal, 1024):
            shown += more
    except OSError:  # how Linux says that nobody holds the other end any more
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown
    assert b"correct" not in shown
    (pid,) = (path.read_text().strip() for path in tmp_path.glob("stat/*/lock"))
    assert b"correct" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    stopped = subprocess.run(
        [sys.executable, "-c", PROGRAM, "stop", *options], env=environ, capture_output=True, check=False
    )
    assert stopped.returncode == 0
    again = subprocess.run(
        [sys.executable, "-c", PROGRAM, "start", *options, *server],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert "the database is protected by a password; give its password (-P)" in again.stderr
