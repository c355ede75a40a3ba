"""The program in place of make: it leaves the module that make leaves, or nothing at all."""

from __future__ import annotations

import pytest
from kit.kbuild import contents, make_bench  # noqa: F401 - the fixture

from stapsrv.compile.engine.prepared.stand_in import follow


def test_build_by_plan_leaves_the_module_of_make_without_make(bench):
    assert bench.record(bench.directory("model")) == 0
    other = bench.directory("other", source="int y;\n")
    assert bench.follow(other) == 0
    assert (other / "other.ko").read_bytes() == b"int y;\n0\n1\nother\n"
    assert bench.calls == 1
    assert bench.reports == ["prepared", "prepared: another start"]
    assert b"include/x.h" in (other / ".other_src.o.cmd").read_bytes()


def test_without_a_plan_that_fits_nothing_is_touched(bench):
    directory = bench.directory("other")
    before = contents(directory)
    assert bench.follow(directory) != 0
    bench.record(bench.directory("model"))
    assert bench.follow(directory, "V=1") != 0
    bench.plan.write_bytes(b"{")
    assert bench.follow(directory) != 0
    assert contents(directory) == before
    assert bench.reports == ["plain: no plan", "prepared", "plain: arguments", "plain: damaged"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [("FAIL", "failure"), ("PRINT", "messages"), ("EXPORT", "exported symbols")],
)
def test_command_that_fails_or_prints_leaves_all_to_make(bench, source, reason):
    compiler = "f() { cp $1 $2; grep -q FAIL $1 && exit 1; grep PRINT $1; :; }; f"
    bench.write_make(compiler=compiler.replace("$", "\\$"))
    assert bench.record(bench.directory("model")) == 0
    directory = bench.directory("other", source=f"{source}\n")
    before = contents(directory)
    assert bench.follow(directory) != 0
    assert contents(directory) == before
    assert bench.reports[-1] == f"plain: {reason}"


def test_call_that_builds_no_module_is_left_alone(bench):
    assert follow(str(bench.place / "store"), ["make", "-C", "/x", "modules"], bench.environ) != 0
    assert bench.reports == ["plain: another kind of build"]
