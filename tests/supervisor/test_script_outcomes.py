"""The outcomes of checks are kept, and each change of them is reported."""

from __future__ import annotations

import contextlib

import anyio
import pytest
from kit.stap import make_stap

from stapsrv.observe.feed import LiveFeed
from stapsrv.scripts.matrix import Cell, Result, Verdict
from stapsrv.supervisor.operations import ServerSpec
from stapsrv.supervisor.script_checks import ScriptChecks
from stapsrv.supervisor.script_outcomes import ScriptOutcomes
from stapsrv.supervisor.state.script_runs import ScriptRuns
from stapsrv.system.changes import ChangeCount

pytestmark = pytest.mark.anyio


@pytest.fixture
def changes() -> ChangeCount:
    return ChangeCount()


@pytest.fixture
def outcomes(changes: ChangeCount) -> ScriptOutcomes:
    return ScriptOutcomes(changes)


def results(release: str, *verdicts: Verdict) -> list[Result]:
    return [
        Result(cell=Cell("/srv", str(number), release), verdict=one) for number, one in enumerate(verdicts)
    ]


def test_check_of_one_release_leaves_the_others_and_a_check_of_all_does_not(outcomes):
    outcomes.note_results(results("6.1.0-10", Verdict.FAILS, Verdict.OK, Verdict.OK), everything=False)
    first = outcomes.counts
    outcomes.note_results(results("6.1.0-9", Verdict.OK), everything=False)
    # In the order of releases and of verdicts, as they are shown.
    assert [(name, list(counts.items())) for name, counts in outcomes.counts.items()] == [
        ("6.1.0-9", [("ok", 1)]),
        ("6.1.0-10", [("ok", 2), ("fails", 1)]),
    ]
    # A status that was taken before is as it was.
    assert list(first) == ["6.1.0-10"]
    outcomes.note_results(results("6.1.0-9", Verdict.WARNS), everything=True)
    assert outcomes.counts == {"6.1.0-9": {"warns": 1}}


def test_changes_are_told_once_and_nothing_is_told_of_what_stays_the_same(outcomes, changes):
    told = []
    for _ in range(2):
        outcomes.note_results(results("6.1", Verdict.OK), everything=False)
        told.append(changes.count)
    for _ in range(2):
        outcomes.note_arrived(("6.9",))
        told.append(changes.count)
    for kept in (["6.1", "6.9"], ["6.9"], ["6.9"]):
        outcomes.keep(kept)
        told.append(changes.count)
    assert told == [1, 1, 2, 2, 2, 3, 3]
    assert (outcomes.counts, outcomes.arrived) == ({}, ("6.9",))


async def test_watchers_get_the_outcomes_at_the_end_of_a_check(bench, tmp_path):
    make_stap(tmp_path / "stap", "exit 1")
    (tmp_path / "collection").mkdir()
    (tmp_path / "collection" / "x.stp").write_text("x")
    settings = bench.settings(tuning={"scripts": (str(tmp_path / "collection"),)})
    async with bench.supervisor() as supervisor:
        await supervisor.start([ServerSpec(settings)])
        runs = ScriptRuns(tmp_path / "runs")
        runtime = bench.runtime
        checks = ScriptChecks(supervisor.serving, runs, runtime.warmup, runtime.scripts, bench.lines.log)
        feed = LiveFeed(supervisor.status, runtime.activity)
        async with contextlib.aclosing(feed.updates(least_s=0.0, heartbeat_s=3600.0)) as updates:
            first = await anext(updates)
            assert first.news.supervisor.scripts == {}
            await checks.check([], changed=False)
            with anyio.fail_after(30):
                async for update in updates:
                    if update.news.supervisor is not None:
                        break
    assert update.news.supervisor.scripts == {"6.1.0-test": {"fails": 1}}
