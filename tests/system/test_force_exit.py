"""The end of a process that something holds up."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, types
from stapsrv.system.force_exit import force_exit_after
def tell(event, *, seconds):
    print(event, seconds, flush=True)
    {then}
force_exit_after(types.SimpleNamespace(error=tell), lambda: print("flushed", flush=True), within_s=0.1)
threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("then", "after"),
    [("return", b"flushed\n"), ("threading.Event().wait()", b""), ("raise OSError", b"")],
)
def test_process_ends_though_its_log_hangs_or_fails(then, after):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(then=then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, b"server.hangs 0.1\n" + after)
