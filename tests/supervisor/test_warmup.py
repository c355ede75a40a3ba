"""First compiles in the background, and the health of releases: a stand-in for stap says what comes of it."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest
from kit.client import exchange, request
from kit.stap import make_stap
from kit.trees import Witness

from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.stap_cache import CACHES_DIRECTORY, Finding
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.engine.prepared.store import ANOTHER_MAKEFILE
from stapsrv.compile.health import Health
from stapsrv.supervisor.advertise import advertisements
from stapsrv.supervisor.operations import ServerSpec
from stapsrv.supervisor.warmup import Warmup

pytestmark = pytest.mark.anyio

MODULE = 'touch "$answer/x.ko"'
BROKEN = "echo 'In file included from x.c:1:' >&2; echo 'x.h:3: error: no such thing' >&2; exit 1"


EMPTY = CompileResult(0, b"", b"", ())


class Kernel:
    """A stap whose answers a test decides, and which notes each run."""

    def __init__(self, bench, directory: Path) -> None:
        self.bench = bench
        self._script, self._runs = directory / "answer.sh", directory / "runs"
        self._runs.touch()
        self.answer(MODULE)
        make_stap(
            bench.runtime.engine.stap.path,
            f'echo "$*" >>{self._runs}; . {self._script}',
        )

    def answer(self, script: str) -> None:
        new = self._script.with_suffix(".new")
        new.write_text(script)
        new.replace(self._script)

    @property
    def runs(self) -> list[str]:
        return self._runs.read_text().splitlines()


@pytest.fixture
def kernel(bench, tmp_path):
    return Kernel(bench, tmp_path)


class Healths:
    """Follows the health of releases."""

    def __init__(self, warmup: Warmup) -> None:
        self.seen: list[Health] = []
        self._changed = anyio.Event()
        self._changed_before = warmup.on_health_change
        warmup.on_health_change = self._note

    def _note(self, standing) -> None:
        self._changed_before(standing)
        self.seen.append(standing.health)
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self, health: Health, count: int = 1) -> None:
        with anyio.fail_after(60):
            while self.seen.count(health) < count:
                await self._changed.wait()


class Listener:
    """In an announcer's place: keeps which releases it was last told to say of a server."""

    def __init__(self) -> None:
        self.said: dict[int, list[str]] = {}

    async def run(self) -> None:
        await anyio.sleep_forever()

    def advertise(self, server_id, server) -> None:
        found = advertisements(server, serial="00", moks=())
        self.said[server_id] = [advertisement.sysinfo for advertisement in found]

    def retract(self, server_id) -> None:
        self.said.pop(server_id, None)

    async def withdraw(self, server_id) -> None:
        self.retract(server_id)


@contextlib.asynccontextmanager
async def started(bench, count: int = 1, advertiser: Listener | None = None, **settings):
    """Start servers of a new process; yields the supervisor, their status, and what follows their health."""
    bench.runtime = bench.new_runtime()
    async with bench.supervisor(advertiser=advertiser) as supervisor:
        healths = Healths(bench.runtime.warmup)
        specs = [
            ServerSpec(bench.settings(warmup=True, max_threads=number, **settings))
            for number in range(1, count + 1)
        ]
        outcomes = await supervisor.start(specs)
        assert [outcome.error for outcome in outcomes] == [None] * count
        yield supervisor, [outcome.server for outcome in outcomes], healths


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


async def test_it_has_a_low_priority(bench, kernel):
    """Which it is given when it has begun, before or after the five that each compile has: it looks again."""
    kernel.answer(f"""
        seen=
        until case $seen in 1[05]' 10' | 1[05]' ' | *autogroup*) true ;; *) false ;; esac; do
            seen="$(nice) $(cut -d' ' -f3 /proc/self/autogroup 2>&1)"
        done
        {MODULE}
    """)
    async with started(bench) as (_, _, healths):
        await healths.wait(Health.HEALTHY)


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


FEATURES, TRACEPOINTS = f"ab/stapconf_{'ab' * 16}_714.h", f"cd/tracequery_{'cd' * 16}_1.o"
# As far as it is not there, which is also how stap does it.
FINDS = f"""
    find_out() {{ mkdir -p "$SYSTEMTAP_DIR/cache/${{1%/*}}"; cat "$SYSTEMTAP_DIR/cache/$1" 2>&1 ||
        echo "$2" >"$SYSTEMTAP_DIR/cache/$1"; }}
    case "$*" in *' -p2 '*) what={TRACEPOINTS} ;; *) what={FEATURES} ;; esac
    case "$script" in *planted*) find_out {FEATURES} planted; find_out {TRACEPOINTS} planted ;;
        *) find_out $what found ;; esac
    {MODULE}
"""


def known(tmp_path: Path) -> dict[str, str]:
    """Return what later compiles begin with."""
    top = tmp_path / "systemtap" / CACHES_DIRECTORY / "unwatched"
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}


class TestFindings:
    async def test_of_a_client_are_found_out_again_by_the_server(self, bench, kernel, tmp_path):
        kernel.answer(FINDS)
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            assert (await exchange(server.port, request("-p4", "-e", "planted"))).rc == 0
            await bench.lines.wait("release.found", 2)
            assert known(tmp_path) == {FEATURES: "found\n", TRACEPOINTS: "found\n"}
            answer = await exchange(server.port, request("-p4", "-e", "planted"))
            assert answer.stdout == "found\nfound\n"
        assert len(kernel.runs) == 4

    async def test_of_guru_mode_are_found_out_in_guru_mode(self, bench, kernel):
        kernel.answer(FINDS)
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            assert (await exchange(server.port, request("-g", "-p4", "-e", "planted"))).rc == 0
            await bench.lines.wait("release.found", 2)
        assert all(" -g " in run for run in kernel.runs)

    async def test_are_not_found_out_again_and_again(self, bench, kernel, tmp_path):
        kernel.answer(f'case "$script" in *planted*) true ;; *) {BROKEN} ;; esac; {FINDS}')
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            for _ in range(3):
                assert (await exchange(server.port, request("-p4", "-e", "planted"))).rc == 0
            await bench.lines.wait("release.unfound", 2)
            assert known(tmp_path) == {}
        assert len(kernel.runs) == 5
        assert bench.lines.reasons("release.unfound") == ["x.h:3: error: no such thing"] * 2

    async def test_are_waited_for_until_all_are_known(self, bench, kernel, tmp_path):
        kernel.answer(FINDS)
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            assert (await exchange(server.port, request("-p4", "-e", "planted"))).rc == 0
            await bench.lines.wait("release.found", 1)
            await bench.runtime.warmup.wait_found()
            assert known(tmp_path) == {FEATURES: "found\n", TRACEPOINTS: "found\n"}

    async def test_that_come_after_its_end_are_left_alone(self, bench, kernel):
        kernel.answer(FINDS)
        found = []
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            bench.runtime.engine.on_findings = lambda *finding: found.append(finding)
            assert (await exchange(server.port, request("-p4", "-e", "planted"))).rc == 0
        bench.runtime.warmup._find(*found[0])
        assert len(kernel.runs) == 1


class TestPlans:
    async def test_missing_for_a_client_is_made_by_the_server_s_own_script(self, bench, kernel):
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            job = await caught(bench, kernel, server, "-g", "-DMAXACTION=1", "-I", "x", "-p4", "-e", "theirs")
            for _ in range(3):
                bench.runtime.engine.on_unplanned(job, EMPTY, frozenset())
            await bench.lines.wait("prepared.none", 1)
        (_, own) = kernel.runs
        assert " -g -DMAXACTION=1 -p4 " in own
        assert "theirs" not in own

    async def test_number_that_waits_to_be_made_is_bounded(self, bench, kernel):
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            job = await caught(bench, kernel, server, "-p4", "-e", "theirs")
            for number in range(100):
                asked = attrs.evolve(job.request, arguments=(f"-DX={number}".encode(),))
                bench.runtime.engine.on_unplanned(attrs.evolve(job, request=asked), EMPTY, frozenset())
            assert len(bench.runtime.warmup._finding) == 8
            await bench.lines.wait("prepared.none", 8)
        assert len(kernel.runs) == 9

    @pytest.mark.parametrize(
        ("build", "found", "scripts"),
        [
            (ANOTHER_MAKEFILE, {Finding.FEATURES, Finding.TRACEPOINTS}, 2),
            # To find the tracepoints out, which this client cannot have asked for, takes minutes.
            (ANOTHER_MAKEFILE, {Finding.FEATURES}, 1),
            ("plain: no plan", {Finding.FEATURES, Finding.TRACEPOINTS}, 1),
        ],
    )
    async def test_are_made_with_tracepoints_where_a_client_may_have_asked_for_them(
        self, bench, kernel, build, found, scripts
    ):
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            job = await caught(bench, kernel, server, "-p4", "-e", "theirs")
            job.record.build = build
            bench.runtime.engine.on_unplanned(job, EMPTY, frozenset(found))
            await bench.lines.wait("prepared.none", scripts)
        assert sorted("kernel.trace" in run for run in kernel.runs[1:]) == [False, True][:scripts]

    async def test_of_a_kernel_that_has_none_is_told_with_the_reason(self, bench, kernel):
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            job = await caught(bench, kernel, server, "-p4", "-e", "theirs")
            bench.runtime.engine.on_unplanned(job, EMPTY, frozenset())
            await bench.lines.wait("prepared.none")
        # Here nothing watches what modules are built with.
        assert bench.lines.reasons("prepared.none") == ["plain: off"]


async def caught(bench, kernel, server, *arguments: str) -> CompileJob:
    """Return the job of a request, which is compiled."""
    jobs = []
    kernel.answer(FINDS)
    bench.runtime.engine.on_findings = lambda job, _found: jobs.append(job)
    assert (await exchange(server.port, request(*arguments))).rc == 0
    kernel.answer(MODULE)
    return jobs[0]


async def test_equal_servers_share_one(bench, kernel):
    async with started(bench, count=3) as (supervisor, _, healths):
        await healths.wait(Health.HEALTHY)
        served = [release for server in supervisor.status().servers for release in server.work.releases]
        assert {release.health for release in served} == {Health.HEALTHY}
        await supervisor.start([ServerSpec(bench.settings(warmup=True, define=("A=1",)))])
        await healths.wait(Health.HEALTHY, 2)
    assert len(kernel.runs) == 2


async def test_one_is_compiled_for_at_a_time(bench, kernel, tmp_path):
    """Each run fails if another one is under way."""
    kernel.answer(f"mkdir {tmp_path}/busy || exit 1; {MODULE}; sleep 0.1; rmdir {tmp_path}/busy")
    specs = [ServerSpec(bench.settings(warmup=True, define=(f"A={number}",))) for number in range(4)]
    async with started(bench) as (supervisor, _, healths):
        await supervisor.start(specs)
        await healths.wait(Health.HEALTHY, 5)
    assert Health.UNHEALTHY not in healths.seen


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
