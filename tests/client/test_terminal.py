"""What a person sees, on a pseudo-terminal, and is asked."""

from __future__ import annotations

import io
import sys

import pytest

from stapsrv.client.errors import UnknownServer
from stapsrv.client.exchange import Stage
from stapsrv.client.terminal import can_ask, confirm, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(monkeypatch):
    """Make standard error a terminal, for the rest of the test, and return it."""

    def begin() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    return begin


def test_progress_is_one_line_that_is_gone_at_the_end(on_terminal):
    screen = on_terminal()
    with progress({"TERM": "xterm"}) as show:
        show(Stage.CONNECTING)
        show(Stage.COMPILING)
    shown = screen.getvalue()
    assert "\x1b[Kconnecting … 0 s\r\x1b[Kcompiling … 0 s" in shown
    assert shown.endswith("\r\x1b[K")
    assert "\n" not in shown


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {}])
def test_dumb_terminal_shows_no_progress(on_terminal, environ):
    screen = on_terminal()
    with progress(environ) as show:
        show(Stage.COMPILING)
    assert screen.getvalue() == ""


def test_pipe_shows_no_progress(capsys):
    with progress({"TERM": "xterm"}) as show:
        show(Stage.COMPILING)
    assert capsys.readouterr().err == ""
    assert not can_ask()


@pytest.mark.parametrize(
    ("typed", "is_trusted"),
    [("yes\n", True), ("no\n", False), ("y\nYES\n", True), ("", False), ("perhaps\n", False)],
)
def test_only_a_whole_yes_trusts(on_terminal, monkeypatch, typed, is_trusted):
    screen = on_terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert can_ask()
    assert confirm(UnknownServer("build:5001", "SHA256:AA")) is is_trusted
    assert "Its certificate is SHA256:AA\n" in screen.getvalue()
