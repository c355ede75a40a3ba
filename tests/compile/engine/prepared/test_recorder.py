"""A recorded build is that of make, and its plan is kept only if it gives the same module."""

from __future__ import annotations

import os

from kit.kbuild import FEATURES, contents, make_bench  # noqa: F401 - the fixture

from stapsrv.compile.engine.prepared.plan import Plan


def test_recorded_build_ends_as_by_make(bench):
    directory = bench.directory("model")
    assert bench.record(directory) == 0
    recorded = contents(directory)
    again = bench.place / "again"
    again.mkdir()
    directory.rename(again / "model")
    bench.plan.unlink()
    plain = bench.directory("model")
    os.spawnvpe(os.P_WAIT, "env", ["env", *bench.call(plain)], bench.environ)
    assert contents(plain) == recorded


def test_features_that_make_finds_out_become_part_of_the_plan(bench):
    assert bench.record(bench.directory("model", features=None)) == 0
    assert Plan.decode(bench.plan.read_bytes()).headers == {FEATURES: "1\n", "stapconf_export.h": ""}


def test_plan_that_gives_another_module_is_not_kept(bench):
    # As a build that has the time of day in it.
    bench.write_make(odd=f"echo x >>{bench.place}/x; cat {bench.place}/x >>$D/$N.ko")
    directory = bench.directory("model")
    assert bench.record(directory) == 0
    assert (directory / "model.ko").read_bytes().endswith(b"model\nx\n")
    assert not bench.plan.exists()
    assert bench.reports == ["plain: another module"]


def test_build_with_messages_is_no_model(bench, capfd):
    bench.write_make(after="echo warning >&2")
    assert bench.record(bench.directory("model")) == 0
    assert "warning" in capfd.readouterr().err
    assert not bench.plan.exists()


def test_failure_of_make_is_that_of_the_recorded_build(bench):
    bench.write_make(after="exit 2")
    assert bench.record(bench.directory("model")) == 2
    assert bench.reports == ["plain: failure"]
