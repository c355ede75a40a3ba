"""``stap-server top`` where it cannot be shown: one line that says what to do instead."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stapsrv.control.cli.commands import top
from stapsrv.errors import ConfigError


@pytest.mark.parametrize("term", ["", "dumb"])
def test_dumb_terminal(term):
    with pytest.raises(ConfigError) as caught:
        top.check_terminal({"TERM": term}, is_terminal=True)
    assert str(caught.value) == (
        "it needs a terminal that can move its cursor; use stap-server status --watch"
    )


def test_missing_textual(monkeypatch):
    monkeypatch.setattr(top, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError) as caught:
        top.check_terminal({"TERM": "xterm"}, is_terminal=True)
    assert str(caught.value) == (
        "it needs Textual, which is not installed;"
        " install it (pip install 'stapsrv[top]'), or use stap-server status --watch"
    )


def test_terminal_that_will_do():
    top.check_terminal({"TERM": "xterm-256color"}, is_terminal=True)


def test_without_a_terminal_it_is_a_line_and_textual_is_not_loaded():
    code = (
        "import sys\nfrom stapsrv.control.cli.commands.top import main\n"
        "status = main([])\nassert 'textual' not in sys.modules\nsys.exit(status)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "TERM": "xterm"},
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        "stap-server top: it needs a terminal that can move its cursor; use stap-server status --watch\n"
    )
