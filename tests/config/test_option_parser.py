"""The grammar that both command lines share."""

from __future__ import annotations

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
