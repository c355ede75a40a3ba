"""Checks of collections by a supervisor, with a stand-in for stap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from kit.stap import make_stap

from stapsrv.errors import ConfigError, LifecycleError
from stapsrv.scripts.matrix import Verdict
from stapsrv.supervisor.operations import ServerSpec
from stapsrv.supervisor.script_checks import ScriptChecks
from stapsrv.supervisor.state.script_runs import ScriptRuns

pytestmark = pytest.mark.anyio

RELEASE = "6.1.0-test"
STAP = """
case $(cat "$script") in
*broken*) echo "semantic error: broken" >&2; exit 1;;
*odd*) echo "WARNING: odd" >&2;;
*endless*) sleep 1000;;
esac
"""


@pytest.fixture
def collection(bench, tmp_path: Path) -> Iterator[Path]:
    make_stap(tmp_path / "stap", STAP)
    directory = tmp_path / "collection"
    directory.mkdir()
    for name in ("good", "odd", "broken"):
        (directory / f"{name}.stp").write_text(name)
    return directory


@asynccontextmanager
async def checking(bench, *directories: Path, **tuning: object) -> Iterator[ScriptChecks]:
    settings = bench.settings(tuning={"scripts": tuple(map(str, directories)), **tuning})
    async with bench.supervisor() as supervisor:
        (outcome,) = await supervisor.start([ServerSpec(settings)])
        assert outcome.error is None
        yield ScriptChecks(
            supervisor.serving,
            ScriptRuns(bench.stat_path / "runs"),
            bench.runtime.warmup,
            bench.runtime.scripts,
            bench.lines.log,
        )


async def verdicts(checks: ScriptChecks, **options: object) -> dict[str, str]:
    report = await checks.check([], **{"changed": False, **options})
    return {result.cell.script: f"{result.verdict}: {result.message}" for result in report.results}


async def test_each_script_has_its_verdict(bench, collection):
    (collection / "bytes.stp").write_bytes(b"\xff")
    (collection / "out.stp").write_text("")
    (collection / "out.toml").write_text('leave_out = ["6.1.*"]')
    (collection / "known.stp").write_text("broken")
    (collection / "known.toml").write_text('fails_for = ["*-test"]')
    (collection / "large.stp").write_text("x" * 60_000)
    missing = collection.parent / "missing"
    seen = []

    async def note(step: object) -> None:
        seen.append((step.done, step.total))

    async with checking(bench, collection, missing) as checks:
        found = await verdicts(checks, on_result=note)
        remembered = await checks.history("broken")
    assert found == {
        "good.stp": "ok: ",
        "odd.stp": "warns: WARNING: odd",
        "broken.stp": "fails: semantic error: broken",
        "known.stp": "expected failure: semantic error: broken",
        "bytes.stp": "not tried: bytes.stp: byte 0 is not UTF-8",
        "out.stp": "left out: ",
        "large.stp": f"not tried: the request has {60_000 + len(f'script{collection}/large.stp')} bytes,"
        " and the server takes 50000; raise MAXREQSIZE",
        str(missing): "not tried: the directory does not exist",
    }
    assert seen == [(number, len(found)) for number in range(1, len(found) + 1)]
    ((change,),) = remembered.values()
    assert change.verdict is Verdict.FAILS


async def test_script_that_stops_working_is_the_first_thing_told(bench, collection):
    async with checking(bench, collection) as checks:
        await verdicts(checks)
        (collection / "good.stp").write_text("broken now")
        report = await checks.check([RELEASE], changed=False)
    (difference,) = report.differences
    assert difference.cell.script == "good.stp"
    assert difference.text.startswith(f"worked before, fails on {RELEASE} (")
    assert difference.text.endswith("): semantic error: broken")


async def test_endless_compile_ends_with_the_servers_limit_and_the_others_go_on(bench, collection):
    (collection / "endless.stp").write_text("endless")
    async with checking(bench, collection, compile_s=1.0, kill_grace_s=0.0) as checks:
        found = await verdicts(checks)
    assert found["endless.stp"] == "fails: The compile was ended: it took longer than 1 seconds"
    assert found["good.stp"] == "ok: "


async def test_no_worker_is_taken_from_clients_and_nothing_is_counted(bench, collection):
    async with checking(bench, collection) as checks:
        (serving,) = checks._servers()
        async with anyio.create_task_group() as tasks:
            for _ in range(serving.server.service.pool.statistics().workers):
                await tasks.start(hold, serving.server.service.pool)
            assert (await verdicts(checks))["good.stp"] == "ok: "
            tasks.cancel_scope.cancel()
        assert serving.server.service.engine.counts.snapshot().misses == 0


async def hold(pool, *, task_status) -> None:
    async with pool.worker("client"):
        task_status.started()
        await anyio.sleep_forever()


async def test_release_that_nobody_serves_and_second_check_are_refused(bench, collection):
    async with checking(bench, collection) as checks:
        with pytest.raises(ConfigError, match=f"serves 5.10; they serve {RELEASE}"):
            await checks.check(["5.10"], changed=False)

        async def again(_step: object) -> None:
            with pytest.raises(LifecycleError, match="running already"):
                await checks.check([], changed=False)

        assert len(await verdicts(checks, on_result=again)) == 3


async def test_cancelled_check_remembers_what_it_knows(bench, collection):
    (collection / "endless.stp").write_text("endless")
    async with checking(bench, collection, kill_grace_s=0.0) as checks:
        with anyio.CancelScope() as scope:

            async def leave(step: object) -> None:
                if step.done == 3:
                    scope.cancel()

            await verdicts(checks, on_result=leave)
        assert scope.cancelled_caught
        assert len(await checks.history("good")) == 1
        assert not await checks.history("endless")
