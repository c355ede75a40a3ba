"""The grammar that both command lines share."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os

import pytest

from stapsrv.config.option_parser import Append, OptionParser
from stapsrv.errors import UsageError


@pytest.fixture
def parser() -> OptionParser:
    parser = OptionParser(prog="program", add_help=False)
    for option in ("-B", "--port"):
        parser.add_argument(option, action=Append)
    for option in ("-k", "--json"):
        parser.add_argument(option, action=Append, nargs=0)
    return parser


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["--port", "1", "-B", "x", "--port=2"], [("--port", "1"), ("-B", "x"), ("--port", "2")]),
        (["-Bx", "-B=x", "-B", "=x"], [("-B", "x"), ("-B", "=x"), ("-B", "=x")]),
        (["-B", "-j2", "-B", "--port", "-B", "--"], [("-B", "-j2"), ("-B", "--port"), ("-B", "--")]),
        (["--port=", "-B", "a b"], [("--port", ""), ("-B", "a b")]),
        (["-k", "--", "--json"], [("-k", None), ("--json", None)]),
        (["--po", "1"], [("--port", "1")]),
    ],
)
def test_options_are_appended_in_order(parser, words, typed):
    assert parser.read(words).typed == typed


def test_help_that_cannot_be_written_is_an_error(monkeypatch, parser):
    def print_and_ignore(_parser, message, file=None):
        with contextlib.suppress(OSError):
            file.write(message)

    # As Python 3.12 and later have it.
    monkeypatch.setattr(argparse.ArgumentParser, "_print_message", print_and_ignore)

    class FullDisk(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        parser.print_help(FullDisk())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port"], "--port: needs a value"),
        (["--json=1"], "--json: takes no value"),
        (["-k="], "-k: takes no value"),
        (["--prot", "1"], "unknown option '--prot'; did you mean --port?"),
        (["-Zx"], "unknown option '-Z'; see program --help"),
        (["x"], "unexpected argument 'x'; see program --help"),
        (["-"], "unexpected argument '-'; see program --help"),
        ([""], "unexpected argument ''; see program --help"),
    ],
)
def test_mistake_is_one_line(parser, words, message):
    with pytest.raises(UsageError) as caught:
        parser.read(words)
    assert str(caught.value) == message
