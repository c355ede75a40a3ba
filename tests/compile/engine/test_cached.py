"""The engine of a server: the cache over single flight over an engine that compiles."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import attrs
import pytest
from kit.service import FakeEngine, LogLines

from stapsrv.compile.cache.disk import DiskStore
from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.inputs import InputPaths, RcFile
from stapsrv.compile.cache.result_cache import ResultCache
from stapsrv.compile.cache.watcher import InputWatcher
from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.engine.cached import CachedEngine
from stapsrv.compile.memory import MemoryBudget
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.stats import CacheCounts, Source
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings

pytestmark = pytest.mark.anyio


@attrs.define
class Inputs:
    """One directory that all results depend on."""

    directory: Path
    fault: str | None = None
    rc: RcFile = RcFile(b"", is_cacheable=True)  # noqa: RUF009 - a value

    def paths(self, _release: ServedRelease, _settings: ServerSettings) -> InputPaths:
        return InputPaths((WatchedPath(str(self.directory / "tapset")),), ())

    def state_digest(self, _release: ServedRelease) -> bytes:
        return b"state"

    def read_rc(self) -> RcFile:
        return self.rc


@attrs.define
class Running:
    """A cached engine, and what it is made of."""

    engine: CachedEngine
    compiler: FakeEngine
    pool: WorkerPool
    lines: LogLines

    def job(self, *arguments: bytes, client: str = "a", **settings: object) -> CompileJob:
        request = CompileRequest(
            release="6.1", arch="x86_64", arguments=arguments or (b"-p4", b"-eprobe begin {}")
        )
        job = CompileJob(
            request=request,
            release=ServedRelease("6.1", "x86_64", "6.1", Path("/nowhere")),
            settings=ServerSettings(**settings),
            client=client,
            log=self.lines.log,
        )
        job.answered.set()
        return job

    async def compile(self, *arguments: bytes, **settings: object) -> tuple[Source | None, str | None]:
        """Compile a job to its very end; return where its result is from, and why it is not stored."""
        job = self.job(*arguments, **settings)
        async with self.engine.answer(job) as entry:
            await entry.stored.wait()
            return job.record.source, entry.reason


@contextlib.asynccontextmanager
async def running(directory: Path, *, workers: int = 2) -> AsyncIterator[Running]:
    (directory / "tapset").mkdir()
    lines, compiler, pool = LogLines(), FakeEngine(), WorkerPool(workers, queue_length=4)
    compiler.dependencies = frozenset({f"{directory}/tapset/read.h"})
    with anyio.fail_after(60), contextlib.closing(InputWatcher(log=lines.log)) as watcher:
        store = DiskStore(directory / "results", max_bytes=1 << 20, max_age_s=1000.0)
        cache = ResultCache(Inputs(directory), watcher, store, log=lines.log)
        engine = CachedEngine(compiler, pool, cache, memory=MemoryBudget(1 << 30))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.run)
            async with engine.open():
                yield Running(engine, compiler, pool, lines)
            tasks.cancel_scope.cancel()
    assert pool.statistics().running == 0


async def test_hits_misses_and_stored_results_are_counted(tmp_path):
    async with running(tmp_path) as r:
        assert [await r.compile() for _ in range(3)] == [
            (Source.COMPILED, None),
            (Source.HIT, None),
            (Source.HIT, None),
        ]
        assert await r.compile(b"-v", b"-eprobe begin {}") == (Source.COMPILED, "option")
        while r.pool.statistics().running:
            await anyio.lowlevel.checkpoint()
        assert len(r.compiler.jobs) == 2
        assert r.engine.counts == CacheCounts(hits=2, misses=2, stored=1, uncacheable={"option": 1})


async def test_key_is_computed_once_a_request(tmp_path, monkeypatch):
    keys = []
    async with running(tmp_path) as r:
        await r.compile(b"-p4", b"-eprobe end {}")
        key_for = ResultCache.key_for
        monkeypatch.setattr(ResultCache, "key_for", lambda self, job: keys.append(job) or key_for(self, job))
        for expected in (Source.COMPILED, Source.HIT):
            keys.clear()
            assert await r.compile() == (expected, None)
            assert len(keys) == 1


@pytest.mark.parametrize("settings", [{"tuning": {"result_cache": False}}, {"keep_temporary": True}], ids=str)
async def test_request_is_compiled_each_time_where_the_cache_is_off(tmp_path, settings):
    async with running(tmp_path) as r:
        assert [await r.compile(**settings) for _ in range(2)] == [(Source.COMPILED, "off")] * 2
        assert len(r.compiler.jobs) == 2
        assert r.engine.counts == CacheCounts()


async def test_requests_that_share_a_compile_are_counted_and_share_the_entry(tmp_path):
    async with running(tmp_path) as r:
        r.compiler.gate = anyio.Event()
        first, second = r.job(), r.job(client="b")
        entries = []

        async def compile_job(job: CompileJob) -> None:
            async with r.engine.answer(job) as entry:
                entries.append(entry)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(compile_job, first)
            await r.compiler.wait(lambda: r.compiler.jobs)
            tasks.start_soon(compile_job, second)
            (flight,) = r.engine._single_flight._flights.values()
            while flight.waiting < 2:
                await anyio.lowlevel.checkpoint()
            r.compiler.gate.set()
        assert entries[0] is entries[1]
        assert (first.record.source, second.record.source) == (Source.COMPILED, Source.SHARED)
        assert r.engine.counts.shared == 1


async def answer(running: Running, job: CompileJob) -> None:
    async with running.engine.answer(job):
        pass


async def test_all_requests_in_work_are_logged_as_concurrent(tmp_path):
    """Also those that share a compile, which the original would give a thread each."""
    async with running(tmp_path) as r:
        r.compiler.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for number, client in enumerate("abcc"):
                tasks.start_soon(answer, r, r.job(client=client))
                await r.lines.wait("request.one" if number == 0 else "request.many", max(1, number))
            tasks.start_soon(answer, r, r.job(b"-p4", b"-eprobe end {}"))
            await r.lines.wait("request.many", 4)
            r.compiler.gate.set()
        assert [entry["running"] for entry in r.lines.entries if "running" in entry] == [2, 3, 4, 5]


async def test_request_after_the_response_waits_for_the_entry_that_is_being_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("stapsrv.compile.engine.cached._HEAD_START_S", 10.0)
    async with running(tmp_path) as r:
        first = attrs.evolve(r.job(), answered=anyio.Event())
        async with r.engine.answer(first) as entry:
            pass
        assert not entry.stored.is_set()
        second = r.job()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer, r, second)
            await anyio.wait_all_tasks_blocked()
            assert second.record.source is None
            first.answered.set()
        assert second.record.source is Source.HIT


async def test_known_result_of_one_client_waits_for_no_queue_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr("stapsrv.compile.engine.cached._READERS", 1)
    async with running(tmp_path) as r:
        scripts = [b"-eprobe begin { exit() }", b"-eprobe end {}", b"-eprobe never {}"]
        for script in scripts:
            assert await r.compile(b"-p4", script) == (Source.COMPILED, None)
        served = []

        async def ask(client: str, script: bytes) -> None:
            async with r.engine.answer(r.job(b"-p4", script, client=client)):
                served.append(client)

        release = await r.engine._memory.claim("c", 1 << 30, wait_s=60.0)
        async with anyio.create_task_group() as tasks:
            for queued, client in enumerate("aaab"):
                tasks.start_soon(ask, client, scripts[queued % 3])
                # The first reads, and then waits for memory; the others wait for it.
                while r.engine._readers.statistics().queued < queued or not r.engine._memory._waiting:
                    await anyio.lowlevel.checkpoint()
            release()
        assert served == ["a", "b", "a", "a"]


async def test_worker_is_free_while_what_the_compile_left_is_removed(tmp_path):
    async with running(tmp_path, workers=1) as r:
        r.compiler.tidying = anyio.Event()
        assert await r.compile() == (Source.COMPILED, None)
        assert r.pool.statistics().running == 0
        async with r.engine.answer(r.job(b"-p4", b"-eprobe end {}")) as entry:
            assert entry.result.status == 0
        assert "request.overloaded" not in r.lines.events()
        r.compiler.tidying.set()


async def test_entry_is_final_and_nothing_is_left_where_the_end_cuts_the_clean_up_short(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("stapsrv.compile.single_flight._FINISH_S", 0.0)
    monkeypatch.setattr("stapsrv.compile.engine.cached._HEAD_START_S", 1000.0)
    async with running(tmp_path) as r:
        async with r.engine.answer(attrs.evolve(r.job(), answered=anyio.Event())) as entry:
            pass
    assert (entry.stored.is_set(), entry.reason) == (True, "unknown yet")
    assert r.compiler.released == 1


async def test_job_in_the_background_takes_no_worker_and_is_not_counted(tmp_path):
    async with running(tmp_path) as made:
        job = attrs.evolve(made.job(), background=True)
        job.answered.set()
        async with contextlib.AsyncExitStack() as held:
            for _ in range(made.pool.statistics().workers):
                await held.enter_async_context(made.pool.worker("client"))
            async with made.engine.answer(job) as entry:
                await entry.stored.wait()
        assert made.engine.counts == CacheCounts()
        # Its result is a client's.
        assert (await made.compile())[0] in {Source.HIT, Source.COMPILED}
        assert "request.one" not in made.lines.events()[:1]


async def test_result_without_compiler_messages_answers_requests_of_other_usual_locales(tmp_path):
    async with running(tmp_path) as made:

        async def source(locale: str, *, stderr: bytes = b"WARNING: no symbols\n") -> Source | None:
            made.compiler.stderr = stderr
            job = made.job()
            job = attrs.evolve(job, request=attrs.evolve(job.request, environment=(("LANG", locale),)))
            job.answered.set()
            async with made.engine.answer(job) as entry:
                await entry.stored.wait()
            return job.record.source

        assert await source("C", stderr=b"a.c:1:2: warning: unused 'x'\n") is Source.COMPILED
        assert await source("en_US.UTF-8") is Source.COMPILED
        assert await source("en_GB.UTF-8") is Source.HIT
        assert await source("de_DE.UTF-8") is Source.COMPILED
        # Its own, with the warning.
        assert await source("C") is Source.HIT
