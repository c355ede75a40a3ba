"""A plan is made with those of a client's options that change a build, and only with plain values."""

from __future__ import annotations

import pytest

from stapsrv.compile.engine.prepared.variants import plan_options, plan_scripts
from stapsrv.compile.protocol.options import parse_options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-p4", "-e", "probe begin {}", "-g"], [b"-g"]),
        (["-DMAXACTION=10", "-b", "-s", "4"], [b"-DMAXACTION=10", b"-b", b"-s4"]),
        (
            ["--privilege=stapusr", "--suppress-time-limits"],
            [b"--privilege=stapusr", b"--suppress-time-limits"],
        ),
        (["-D", "X=$(touch y)", "-DY=a b", "-I", "tapset", "-m", "name"], []),
        (["-DX=" + "1" * 200], []),
    ],
)
def test_plan_has_options_that_change_builds_with_plain_values(given, expected):
    assert list(plan_options(parse_options([word.encode() for word in given]))) == expected


def test_number_of_options_is_bounded():
    options = parse_options([f"-DX{number}".encode() for number in range(1000)])
    assert len(plan_options(options)) == 20


def test_script_has_the_probes_by_which_a_source_begins_alike():
    assert plan_scripts([], traced=False) == (b"probe begin { exit() }",)
    lines = [b"int x;\n#define _HAVE_PERF_ 1\n#include", b"#define STP_NEED_UNWIND_DATA 1\n"]
    (script,) = plan_scripts(lines, traced=False)
    assert b"timer.profile" in script
    assert b"print_backtrace" in script
    assert plan_scripts([b'"#define _HAVE_PERF_ 1"'], traced=False) == (b"probe begin { exit() }",)


def test_build_that_may_be_of_tracepoints_has_a_script_with_one_too():
    plain, traced = plan_scripts([], traced=True)
    assert plain == b"probe begin { exit() }"
    assert b"kernel.trace" in traced
