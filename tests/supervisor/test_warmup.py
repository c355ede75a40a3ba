"""First compiles in the background, and the health of releases: a stand-in for stap says what comes of it."""

from __future__ import annotations

import errno
import os
from typing import NoReturn

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from kit.client import exchange, request
from kit.kernel import BROKEN, MODULE, Listener, started
from kit.trees import Witness

from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.stap_cache import CACHES_DIRECTORY
from stapsrv.compile.health import Health
from stapsrv.supervisor.operations import ServerSpec

pytestmark = pytest.mark.anyio


async def test_release_is_compiled_for_once_and_known_to_be_warm_after_a_restart(bench, kernel):
    async with started(bench) as (supervisor, _, healths):
        await healths.wait(Health.HEALTHY)
        assert healths.seen == [Health.WARMING, Health.HEALTHY]
        (server,) = supervisor.status().servers
        (served,) = server.work.releases
        assert (served.health, served.reason) == (Health.HEALTHY, None)
    async with started(bench) as (_, _, healths):
        await healths.wait(Health.HEALTHY)
        assert healths.seen == [Health.HEALTHY]
    assert len(kernel.runs) == 1
    assert bench.lines.events().count("release.healthy") == 1


@pytest.mark.parametrize("what", ["build tree", "what stap knew", "stap"])
async def test_it_is_compiled_for_again_after_a_change(bench, kernel, tmp_path, what):
    async with started(bench) as (_, _, healths):
        await healths.wait(Health.HEALTHY)
    if what == "build tree":
        (bench.build_tree / "Makefile").write_text("new")
    elif what == "stap":
        os.utime(bench.runtime.engine.stap.path)
    else:
        known = tmp_path / "systemtap" / CACHES_DIRECTORY
        known.rename(tmp_path / "systemtap" / "old")
        known.mkdir()
    async with started(bench) as (_, _, healths):
        await healths.wait(Health.HEALTHY)
    assert len(kernel.runs) == 2


async def test_equal_servers_share_one(bench, kernel):
    async with started(bench, count=3) as (supervisor, _, healths):
        await healths.wait(Health.HEALTHY)
        served = [release for server in supervisor.status().servers for release in server.work.releases]
        assert {release.health for release in served} == {Health.HEALTHY}
        await supervisor.start([ServerSpec(bench.settings(warmup=True, define=("A=1",)))])
        await healths.wait(Health.HEALTHY, 2)
    assert len(kernel.runs) == 2


async def test_none_is_compiled_for_where_that_is_not_wanted(bench, kernel):
    async with bench.supervisor() as supervisor:
        (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
        assert [release.health for release in outcome.server.work.releases] == [Health.UNTRIED]
        assert [target.scope for target in bench.runtime.warmup._targets.values()] == [None]
    assert kernel.runs == []


async def test_it_takes_no_worker_and_ends_with_its_server(bench, kernel, tmp_path):
    witness = Witness(tmp_path)
    kernel.answer(f'echo >"{witness.path}"; sleep 1000')
    async with started(bench) as (supervisor, (server,), healths):
        await healths.wait(Health.WARMING)
        await witness.wait_line()
        witness.close()
        assert supervisor.status().compiles == 0
        kernel.answer(MODULE)
        answer = await exchange(server.port, request("-p4"))
        assert answer.rc == 0
        # What the client's request has shown is enough.
        await healths.wait(Health.HEALTHY)
        while any(target.scope for target in bench.runtime.warmup._targets.values()):
            await anyio.lowlevel.checkpoint()
    assert len(kernel.runs) == 2
    # Nothing of the client's compile is kept: the next process begins anew.
    async with started(bench) as (_, _, healths):
        await healths.wait(Health.HEALTHY)
        assert healths.seen == [Health.WARMING, Health.HEALTHY]
    assert len(kernel.runs) == 3


class TestUnhealthy:
    @pytest.mark.parametrize("changed", ["Makefile", "include/config/new"])
    async def test_is_logged_not_advertised_and_tried_again_after_a_change(self, bench, kernel, changed):
        kernel.answer(BROKEN)
        network = Listener()
        async with started(bench, advertiser=network) as (supervisor, (begun,), healths):
            await healths.wait(Health.UNHEALTHY)
            (server,) = supervisor.status().servers
            (release,) = server.work.releases
            assert (release.health, release.reason) == (Health.UNHEALTHY, "x.h:3: error: no such thing")
            assert network.said == {begun.id: []}
            kernel.answer(MODULE)
            await bench.lines.wait("release.unhealthy")
            (bench.build_tree / changed).touch()
            await healths.wait(Health.HEALTHY)
            assert network.said == {begun.id: ["6.1.0-test x86_64"]}
        assert bench.lines.reasons("release.unhealthy") == ["x.h:3: error: no such thing"]

    async def test_is_attempted_for_a_client_whose_success_makes_it_healthy(self, bench, kernel):
        kernel.answer(BROKEN)
        async with started(bench) as (_, (server,), healths):
            await healths.wait(Health.UNHEALTHY)
            assert (await exchange(server.port, request("-p4"))).rc == 1
            assert Health.HEALTHY not in healths.seen
            kernel.answer(MODULE)
            assert (await exchange(server.port, request("-p4"))).rc == 0
            await healths.wait(Health.HEALTHY)

    @pytest.mark.parametrize("hangs", [False, True])
    async def test_is_tried_again_after_some_time(self, bench, kernel, monkeypatch, hangs):
        def fingerprint(_path: WatchedPath, _watch: object) -> NoReturn:
            raise TimeoutError(errno.ETIMEDOUT, "no answer")

        if hangs:
            monkeypatch.setattr("stapsrv.compile.cache.watcher.fingerprint", fingerprint)
        kernel.answer(BROKEN)
        bench.first_delay_s = 0.1
        async with started(bench) as (_, _, healths):
            await healths.wait(Health.UNHEALTHY)
            kernel.answer(MODULE)
            await healths.wait(Health.HEALTHY)
