"""The environment as a program was started with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stapsrv.system.environ import started_environ


@pytest.mark.parametrize(
    ("given", "kept"),
    [(b"PATH=/bin\0LANG=C\0", False), (b"LC_CTYPE=C.UTF-8\0", True), (b"X=LC_CTYPE=\0", False)],
)
def test_coerced_locale_is_left_out(tmp_path, given, kept):
    (tmp_path / "environ").write_bytes(given)
    environ = {"LC_CTYPE": "C.UTF-8", "LANG": "C"}
    found = started_environ(environ, started_with=tmp_path / "environ")
    assert found == ({"LC_CTYPE": "C.UTF-8", "LANG": "C"} if kept else {"LANG": "C"})
    assert started_environ({"LANG": "C"}, started_with=tmp_path / "environ") == {"LANG": "C"}


def test_everything_is_kept_where_the_initial_environment_is_unreadable(tmp_path):
    assert started_environ({"LC_CTYPE": "C"}, started_with=tmp_path / "missing") == {"LC_CTYPE": "C"}


@pytest.mark.parametrize("added", [{}, {"LC_CTYPE": "C.UTF-8"}])
def test_python_in_the_c_locale(added):
    """Python really does it: or else there is nothing to undo."""
    code = (
        "import os\nfrom stapsrv.system.environ import started_environ\n"
        "print('LC_CTYPE' in os.environ, 'LC_CTYPE' in started_environ(os.environ))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"LANG": "C", "PATH": os.environ["PATH"], **added},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == f"True {bool(added)}\n"
