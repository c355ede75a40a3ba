"""The table of what can be tuned, and that everything else agrees with it."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from stapsrv.config.global_settings import SYSTEM_SETTINGS, lay_over
from stapsrv.config.settings import HostDefaults, Limits, NetworkAccess, ServerSettings
from stapsrv.config.tunables import SERVER_TUNABLES, TUNABLES, Scope, Tuning, with_tuning
from stapsrv.control.cli.console import title
from stapsrv.control.cli.parser import parse_arguments as parse_command
from stapsrv.daemon_options import parse_arguments
from stapsrv.errors import UsageError

TYPED = {field.name: field for group in (Limits, NetworkAccess) for field in attrs.fields(group)}


def a_value(row):
    """Return a value that is not the default, as text."""
    texts = ("1", "2", "7M", "7k", "9k", "yes", "no", "off", "/a", "192.0.2.1", "192.0.2.0/24")
    for text in texts:
        try:
            if row.kind.parse(text) != row.default:
                return text
        except ValueError:
            continue
    raise AssertionError(f"no value for {row.variable}")


def test_each_row_of_a_server_has_a_type_and_the_reverse():
    assert {row.attribute for row in SERVER_TUNABLES} == TYPED.keys()
    for row in SERVER_TUNABLES:
        assert TYPED[row.attribute].default == row.default


@pytest.mark.parametrize("row", TUNABLES, ids=lambda row: row.variable)
def test_rows_are_fit_for_people(row):
    assert re.fullmatch(r"[A-Z][A-Z_]*[A-Z]", row.variable)
    assert row.help[0].islower()
    assert not row.help.endswith(".")
    assert row.kind.metavar
    if row.default_text:
        assert row.kind.parse(row.default_text) == row.default


@pytest.mark.parametrize("row", TUNABLES, ids=lambda row: row.variable)
def test_each_row_is_documented(row):
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith(f"| `{row.variable}` |")]
    assert lines == [f"| `{row.variable}` | {row.default_text} | {row.help} |"]


def test_names_are_unique():
    assert (
        len({row.variable for row in TUNABLES}) == len({row.attribute for row in TUNABLES}) == len(TUNABLES)
    )


@pytest.mark.parametrize("row", SERVER_TUNABLES, ids=lambda row: row.variable)
def test_each_row_works_everywhere(row):
    """In the global file, as an option of both programs, and shown by ``status``."""
    text = a_value(row)
    parsed = row.kind.parse(text)
    value = (parsed,) if row.array else parsed
    assert lay_over(SYSTEM_SETTINGS, f"{row.variable}={text}\n", where="g").tuning == {row.attribute: value}
    server = parse_arguments([row.option, text]).server
    assert server is not None
    assert server.tuning == {row.attribute: value}
    (specification,) = parse_command(["start", row.option, text], directory=None).specifications
    assert specification.settings == ((row.option, text),)
    assert title({row.variable: text}) == f'stap-server {row.option} "{text}"'


@pytest.mark.parametrize(
    "row", [row for row in TUNABLES if row.scope is Scope.SUPERVISOR], ids=lambda row: row.variable
)
def test_each_row_of_the_supervisor_works_everywhere(row):
    text = a_value(row)
    wanted = {row.attribute: row.kind.parse(text)}
    assert lay_over(SYSTEM_SETTINGS, f"{row.variable}={text}\n", where="g").tuning == wanted
    options = parse_arguments([row.option, text])
    assert (options.server, options.tuning) == (None, wanted)


def test_who_goes_before_whom():
    defaults = HostDefaults(
        arch="x86_64",
        release="6.1",
        user="me",
        log=Path("/l"),
        tuning=Tuning({"connections": 5, "compile_s": 6.0}),
    )
    limits = ServerSettings(tuning={"connections": 7}).resolved(defaults).limits
    assert limits == Limits(connections=7, compile_s=6.0)
    once = lay_over(SYSTEM_SETTINGS, "QUEUE_LENGTH=1\nMAX_CONNECTIONS=2\n", where="a")
    twice = lay_over(once, "QUEUE_LENGTH=3\nMAX_CONNECTIONS=\n", where="b")
    assert twice.tuning == {"queue_length": 3, "connections": 2}


def test_tuning_is_a_value():
    one, same = Tuning({"connections": 1, "drain_s": 2.0}), Tuning({"drain_s": 2.0, "connections": 1})
    assert (one, hash(one)) == (same, hash(same))
    assert one != Tuning({"connections": 1})
    assert with_tuning({"port": 1}) == {"port": 1}
    with pytest.raises(KeyError):
        Tuning({"conections": 1})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--compile-timeout", "soon"],
            "--compile-timeout: expected a duration from 0.1 seconds to 1d, like 30 (seconds), 30s or 5m, "
            "not 'soon'",
        ),
        (
            ["--max-answer-size=12"],
            "--max-answer-size: expected a size of 1k or more, like 65536 (bytes), 64M or 1G, not '12'",
        ),
        (
            ["--listen", "localhost"],
            "--listen: expected an IPv4 or IPv6 address without a port, like 192.0.2.1 or fe80::1%eth0 "
            "(host names are not looked up), not 'localhost'",
        ),
        (
            ["--max-connections", "0"],
            "--max-connections: expected a number of connections, 1 or more, not '0'",
        ),
    ],
)
def test_wrong_values_get_one_line(words, message):
    with pytest.raises(UsageError) as caught:
        parse_command(["start", *words], directory=None)
    assert str(caught.value) == message
    with pytest.raises(UsageError) as caught:
        parse_arguments(words)
    assert message.partition("expected")[2].partition(", not")[0] in str(caught.value)
    assert "\n" not in str(caught.value)
