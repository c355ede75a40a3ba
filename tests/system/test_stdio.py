"""Programs whose standard output cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from stapsrv.system.stdio import guard_stdout
with guard_stdout("example"):
    print("text")
    {then}
"""


def run(then: str = "pass", **streams: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(then=then)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("then", "status"), [("pass", 0), ("sys.exit(3)", 3)])
def test_output_is_written_however_the_block_ends(then, status):
    ran = run(then)
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, b"text\n", b"")


@pytest.mark.parametrize("then", ["pass", "sys.exit(3)"])
def test_closed_pipe_ends_with_141_and_no_message(then):
    reading, writing = os.pipe()
    os.close(reading)
    ran = run(then, stdout=writing)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_full_disk_ends_with_1_and_one_line():
    with open("/dev/full", "wb") as full:
        ran = run(stdout=full)
    assert (ran.returncode, ran.stderr) == (1, b"example: standard output: No space left on device\n")


def test_error_of_the_block_names_its_file():
    ran = run('open("/nowhere/x")')
    assert (ran.returncode, ran.stdout) == (1, b"text\n")
    assert ran.stderr == b"example: /nowhere/x: No such file or directory\n"


def test_missing_streams_are_no_error():
    ran = run(stdout=None, stderr=None, preexec_fn=lambda: (os.close(1), os.close(2)))
    assert ran.returncode == 0
