"""Open files, and how many connections they allow."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from kit.service import LogLines

from stapsrv.system.rlimits import max_connections, warn_of_few_files

LOWERED = (
    "import resource; from stapsrv.system.rlimits import raise_open_files;"
    "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard));"
    "raise_open_files();"
    "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)"
)


def test_soft_limit_is_raised_to_the_hard_one():
    subprocess.run([sys.executable, "-c", LOWERED], check=True, timeout=60)


@pytest.mark.parametrize(
    ("wanted", "open_files", "most"),
    [
        (None, 1_000_000, 4096),
        (None, 1024, 768),
        (None, 256, 160),
        (None, 10, 1),
        (100, 1024, 100),
        (10_000, 1_000_000, 10_000),
        (10_000, 1024, 768),
    ],
)
def test_connections_are_bounded_by_open_files(monkeypatch, wanted, open_files, most):
    monkeypatch.setattr(resource, "getrlimit", lambda _resource: (open_files, open_files))
    assert max_connections(wanted) == most


@pytest.mark.anyio
async def test_too_few_open_files_are_logged():
    lines = LogLines()
    warn_of_few_files(10**9, lines.log)
    (entry,) = lines.entries
    assert (entry["event"], entry["wanted"]) == ("listener.descriptors", 10**9)
    warn_of_few_files(1, lines.log)
    assert len(lines.entries) == 1
