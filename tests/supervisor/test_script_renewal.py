"""Scripts are compiled again when something changes, with a stand-in for stap."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from kit.stap import make_stap

from stapsrv.scripts.history import History
from stapsrv.supervisor.operations import ServerSpec
from stapsrv.supervisor.script_checks import ScriptChecks
from stapsrv.supervisor.script_renewal import ScriptRenewal
from stapsrv.supervisor.state.script_runs import ScriptRuns

pytestmark = pytest.mark.anyio

STAP = """
case $(cat "$script") in
*broken*) echo "semantic error: broken" >&2; exit 1;;
*slow*) echo >BEGUN; sleep 1000;;
esac
echo >"$answer/stap_x.ko"
"""


@asynccontextmanager
async def renewing(
    bench, tmp_path: Path, installed: list[str], **tuning: object
) -> AsyncIterator[ScriptChecks]:
    os.mkfifo(tmp_path / "begun")
    make_stap(tmp_path / "stap", STAP.replace("BEGUN", str(tmp_path / "begun")))
    (tmp_path / "collection").mkdir()
    (tmp_path / "collection" / "x.stp").write_text("good")
    (tmp_path / "modules").mkdir()
    settings = bench.settings(
        tuning={"scripts": (str(tmp_path / "collection"),), "kill_grace_s": 0.0, **tuning}
    )
    async with bench.supervisor() as supervisor, anyio.create_task_group() as tasks:
        checks = ScriptChecks(
            supervisor.serving,
            ScriptRuns(tmp_path / "runs"),
            bench.runtime.warmup,
            bench.runtime.scripts,
            bench.lines.log,
        )
        renewal = ScriptRenewal(
            checks,
            None,
            bench.runtime.activity.changes,
            bench.runtime.warmup,
            bench.lines.log,
            installed=lambda: list(installed),
            modules=tmp_path / "modules",
            settle_s=0.0,
        )
        tasks.start_soon(renewal.run)
        (outcome,) = await supervisor.start([ServerSpec(settings)])
        assert outcome.error is None
        yield checks
        tasks.cancel_scope.cancel()


async def verdicts(bench, event: str, count: int) -> list[dict[str, object]]:
    """Wait until so many entries of an event are logged."""
    while len(found := [entry for entry in bench.lines.entries if entry["event"] == event]) < count:
        await bench.lines._changed.wait()
    return found


async def test_script_that_changes_is_compiled_again_and_the_difference_is_told(bench, tmp_path):
    async with renewing(bench, tmp_path, [], warmup=True) as checks:
        await verdicts(bench, "scripts.checked", 1)
        assert checks.outcomes.counts == {"6.1.0-test": {"ok": 1}}
        (tmp_path / "collection" / "x.stp").write_text("broken")
        (different,) = await verdicts(bench, "scripts.different", 1)
        assert different["script"] == "x.stp"
        assert "fails on 6.1.0-test" in str(different["difference"])
        await verdicts(bench, "scripts.checked", 2)
        # The next caller gets it, once.
        told = [(await checks.check([], changed=False)).differences for _ in range(2)]
        assert [len(each) for each in told] == [1, 0]


async def test_installed_release_is_warmed_up_and_checked_before_a_server_serves_it(bench, tmp_path):
    installed = ["6.0"]
    async with renewing(bench, tmp_path, installed, warmup=True) as checks:
        await verdicts(bench, "scripts.checked", 1)
        installed.append("6.9")
        (tmp_path / "modules" / "6.9").mkdir()
        await verdicts(bench, "scripts.arrived", 1)
        await verdicts(bench, "scripts.checked", 3)
        assert set(checks.outcomes.counts) == {"6.1.0-test", "6.9"}
        assert checks.outcomes.arrived == ("6.9",)
    told = [(entry["event"], entry.get("release")) for entry in bench.lines.entries]
    assert told.index(("release.healthy", "6.9")) < told.index(("scripts.checked", "6.9"))


async def test_what_came_of_scripts_is_forgotten_with_the_last_collection(bench, tmp_path):
    async with renewing(bench, tmp_path, [], warmup=True) as checks:
        await verdicts(bench, "scripts.checked", 1)
        (serving,) = checks._servers()
        serving.apply_settings(bench.settings(warmup=True))
        while checks.outcomes.counts:
            seen = bench.runtime.activity.changes.count
            await bench.runtime.activity.changes.wait_beyond(seen)


async def test_check_that_is_asked_for_comes_before_a_renewal(bench, tmp_path):
    async with renewing(bench, tmp_path, [], warmup=True) as checks:
        await verdicts(bench, "scripts.checked", 1)
        (tmp_path / "collection" / "x.stp").write_text("slow")
        await anyio.to_thread.run_sync((tmp_path / "begun").read_text)
        (tmp_path / "collection" / "x.stp").write_text("good")
        report = await checks.check([], changed=False)
        assert [str(result.verdict) for result in report.results] == ["ok"]


async def test_server_that_is_not_to_be_warmed_up_is_left_alone(bench, tmp_path):
    async with renewing(bench, tmp_path, [], warmup=False) as checks:
        report = await checks.check([], changed=False)
        assert len(report.results) == 1
        assert "scripts.checked" not in bench.lines.events()


async def test_where_nothing_can_be_remembered_servers_go_on_and_it_is_tried_again(
    bench, tmp_path, monkeypatch
):
    read = ScriptRuns.read

    def fail(_runs: ScriptRuns) -> History:
        monkeypatch.setattr(ScriptRuns, "read", read)
        raise TimeoutError(errno.ETIMEDOUT, "it hangs")

    monkeypatch.setattr(ScriptRuns, "read", fail)
    async with renewing(bench, tmp_path, [], warmup=True) as checks:
        (told,) = await verdicts(bench, "scripts.unremembered", 1)
        assert told["reason"] == "it hangs"
        (tmp_path / "collection" / "x.stp").write_text("broken")
        await verdicts(bench, "scripts.checked", 1)
        assert checks.outcomes.counts == {"6.1.0-test": {"fails": 1}}


async def test_without_collections_nothing_is_looked_at(bench, tmp_path):
    installed = ["6.0"]
    async with renewing(bench, tmp_path, installed, warmup=True, scripts=()) as checks:
        installed.append("6.9")
        (tmp_path / "modules" / "6.9").mkdir()
        bench.runtime.activity.changes.note()
        await checks.renew()
        assert checks.outcomes.arrived == ()
    assert not {"scripts.arrived", "scripts.checked"} & set(bench.lines.events())
    assert not (tmp_path / "runs").exists()
