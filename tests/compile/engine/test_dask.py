"""A server's engine over a farm of real processes, whose stap is a stand-in."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from functools import partial
from pathlib import Path

import anyio
import attrs
import pytest
import structlog
from kit.farm import Member, processes_with, stand_in_farm
from kit.service import FakeEngine, LogLines

from stapsrv.compile.engine.base import CompileJob, EngineHost
from stapsrv.compile.engine.dask import DaskEngine, open_engine
from stapsrv.compile.health import Health
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError, TranslatorError

pytestmark = pytest.mark.anyio
RELEASE = "6.1.0-test"
MAKES = b'echo module >"$answer/stap_x.ko"'
PATIENCE_S = 90.0


@attrs.define(eq=False)
class Front:
    """What a server has: engines, by their settings."""

    address: str
    host: EngineHost
    local: FakeEngine
    lines: LogLines
    changes: list[anyio.Event]

    async def changed(self) -> None:
        """Wait until the health of a release has changed."""
        self.changes.append(anyio.Event())
        await self.changes[-1].wait()

    async def engine(self, releases=(RELEASE,), **tuning) -> DaskEngine:
        wanted = {"engine": "dask", "farm": self.address, "farm_wait_s": 60.0, **tuning}
        return await open_engine(ServerSettings(releases=releases, tuning=wanted), self.host)


@contextlib.asynccontextmanager
async def open_front(address):
    local, lines, changes = FakeEngine(), LogLines(), []
    async with anyio.create_task_group() as tasks:
        host = EngineHost(
            local=local,
            environ={},
            log=lines.log,
            health_changed=lambda _health: [change.set() for change in changes],
            tasks=tasks,
        )
        with anyio.fail_after(PATIENCE_S):
            yield Front(address, host, local, lines, changes)
        tasks.cancel_scope.cancel()


def job(engine, script=MAKES, release=RELEASE, **changes):
    served = engine.releases[release]
    request = CompileRequest(release=release, arch=served.arch, arguments=(b"-e", script))
    return CompileJob(
        log=structlog.get_logger(), request=request, release=served, settings=ServerSettings(), **changes
    )


async def run(engine, *arguments, **changes):
    done = job(engine, *arguments, **changes)
    compiled = await engine.compile(done)
    await compiled.release()
    return done, compiled


async def offered(engine, release=RELEASE):
    """Wait until a release is offered."""
    healthy = anyio.Event()
    with engine.release_health[release].when_healthy(healthy.set):
        await healthy.wait()


async def wait_until(engine, condition):
    """Wait until the farm is so that a condition holds."""
    watcher = Watcher()
    engine._farm.listen(watcher.look)
    while not condition():
        await watcher.changed.wait()


def has_reason(health, reason):
    return not health.is_usable and health.reason == reason


class Watcher:
    def __init__(self):
        self.changed = anyio.Event()

    def look(self):
        self.changed.set()
        self.changed = anyio.Event()
        return math.inf


class Rendezvous:
    """Two named pipes: by one a script says that it runs, by the other it is let go on."""

    def __init__(self, directory: Path) -> None:
        self.here, self.go = directory / "here", directory / "go"
        # Both ends are open here, so that nobody's opening ever waits for the other's.
        self._fds = [self._make(path) for path in (self.here, self.go)]

    @staticmethod
    def _make(path: Path) -> int:
        os.mkfifo(path)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def script(self, then: str) -> bytes:
        return f"echo here >{self.here}; {then}".encode()

    @property
    def hanging_once(self) -> bytes:
        """A script whose first run does not end by itself."""
        # The mark comes first: a run may be ended at any moment after it has said that it is here.
        hang = f"if mkdir {self.here}.first; then echo here >{self.here}; sleep 600; fi; "
        return hang.encode() + self.script(MAKES.decode())

    @property
    def waiting(self) -> bytes:
        """A script that waits until it may go on."""
        return self.script(f"read line <{self.go}; {MAKES.decode()}")

    async def wait(self) -> list[int]:
        """Wait until a script runs; returns the processes that have it on their command line."""
        await anyio.wait_readable(self._fds[0])
        assert os.read(self._fds[0], len("here\n")) == b"here\n"
        return processes_with(str(self.here))

    def go_on(self) -> None:
        os.write(self._fds[1], b"go\n")


@pytest.fixture
def meeting(tmp_path):
    with contextlib.closing(Rendezvous(tmp_path)) as rendezvous:
        yield rendezvous


def member_of(processes: list[int], members: list[Member]) -> Member:
    """Return the one that is above the first of some processes."""
    pid = processes[0]
    while pid > 1:
        for member in members:
            if member.process.pid == pid:
                return member
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)[1])
    raise AssertionError("nobody's")


async def wait_gone(processes: list[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                await anyio.wait_readable(pidfd)
            finally:
                os.close(pidfd)


@contextlib.asynccontextmanager
async def running(engine, script):
    """Compile while the block runs, and yield the list that the job and its outcome come into."""
    outcomes = []

    async def work():
        try:
            outcomes.append(await run(engine, script))
        except TranslatorError as exc:
            outcomes.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        yield outcomes


async def test_job_is_compiled_by_a_worker(tmp_path, build_tree):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        farm.start_workers()
        async with open_front(farm.address) as front:
            engine = await front.engine()
            script = b"echo said; echo wrong >&2; " + MAKES + b"; exit 3"
            done, compiled = await run(engine, script)
            result = compiled.result
            assert (result.status, result.stdout, result.stderr) == (3, b"said\n", b"wrong\n")
            files = [(file.path, file.data) for file in result.files]
            assert files == [("stap000000/stap_x.ko", b"module\n")]
            assert done.record.worker == "n0"
            # The stand-in has none that could be watched.
            assert compiled.elsewhere.uncacheable == "tapsets"
            assert compiled.elsewhere.toolchain == engine.promise(done)
            assert front.local.jobs == []


async def test_release_that_no_worker_has_is_refused_at_once(tmp_path, build_tree):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        farm.start_workers()
        async with open_front(farm.address) as front:
            engine = await front.engine(releases=(RELEASE, "6.9.9"), farm_wait_s=0.1)
            await offered(engine)
            said = r"No worker .* of 6\.9\.9: they have those of 6\.1\.0-test"
            with pytest.raises(TranslatorError, match=said):
                await run(engine, release="6.9.9")
            assert engine.release_health["6.9.9"].health is Health.UNHEALTHY


@pytest.mark.parametrize("releases", [(), ("installed",)])
async def test_server_of_each_release_serves_what_the_farm_offers(tmp_path, build_tree, releases):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        async with open_front(farm.address) as front:
            engine = await front.engine(releases=releases)
            assert dict(engine.releases) == {}
            await anyio.to_thread.run_sync(farm.start_workers)
            while RELEASE not in engine.releases:
                await front.changed()
            assert engine.release_health[RELEASE].health is Health.HEALTHY
            _, compiled = await run(engine)
            assert compiled.result.status == 0


async def test_job_of_a_killed_worker_runs_elsewhere_and_its_compile_ends(tmp_path, build_tree, meeting):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        workers = farm.start_workers(count=2)
        async with open_front(farm.address) as front:
            engine = await front.engine()
            async with running(engine, meeting.hanging_once) as outcomes:
                processes = await meeting.wait()
                killed = member_of(processes, workers)
                killed.kill()
                await meeting.wait()
                await wait_gone(processes)
        ((done, compiled),) = outcomes
        assert compiled.result.status == 0
        assert done.record.worker == f"n{1 - workers.index(killed)}"


async def test_server_that_names_no_release_serves_those_that_the_farm_has(tmp_path, build_tree):
    other = tmp_path / "other"
    shutil.copytree(build_tree, other)
    (other / "include" / "config" / "kernel.release").write_text("6.6.0-test\n")
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        farm.start_workers()
        async with open_front(farm.address) as front:
            engine = await front.engine(releases=(), farm_wait_s=0.5)
            await wait_until(engine, lambda: set(engine.releases) == {RELEASE})
            worker = farm.begin_worker("--name", "both", "-r", str(other))
            await wait_until(engine, lambda: set(engine.releases) == {RELEASE, "6.6.0-test"})
            _, compiled = await run(engine, release="6.6.0-test")
            assert compiled.result.status == 0
            health = engine.release_health["6.6.0-test"]
            worker.kill()
            # Its requests wait a little for a worker that was there.
            await wait_until(engine, lambda: health.health is Health.UNHEALTHY)
            await wait_until(engine, lambda: set(engine.releases) == set(engine.release_health) == {RELEASE})
            assert engine.release_health[RELEASE].health is Health.HEALTHY


async def test_release_is_advertised_as_long_as_its_requests_wait_for_the_scheduler(tmp_path, build_tree):
    with stand_in_farm(tmp_path, build_tree) as farm:
        scheduler = farm.start_scheduler()
        farm.start_workers()
        async with open_front(farm.address) as front:
            patient = await front.engine(farm_wait_s=600.0)
            short = await front.engine(farm_wait_s=0.5)
            refusing = await front.engine(farm_fallback="refuse")
            for engine in (patient, short, refusing):
                await offered(engine)
            scheduler.kill()
            for health in (engine.release_health[RELEASE] for engine in (short, refusing)):
                await wait_until(patient, partial(has_reason, health, "The farm cannot be reached"))
            assert patient.release_health[RELEASE].health is Health.HEALTHY


async def test_status_tells_of_nodes_jobs_and_losses(tmp_path, build_tree, meeting):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        workers = farm.start_workers(count=2)
        async with open_front(farm.address) as front:
            engine = await front.engine()
            await offered(engine)
            release = f"{RELEASE} {engine.releases[RELEASE].arch}"
            idle = engine.status()
            assert (idle.name, idle.address, idle.connected) == ("dask", farm.address, True)
            assert (idle.workers, idle.slots, idle.releases, idle.running) == (2, 4, (release,), 0)
            async with running(engine, meeting.hanging_once):
                processes = await meeting.wait()
                assert (engine.status().running, engine.status().waiting) == (1, 0)
                member_of(processes, workers).kill()
                await meeting.wait()
            after = engine.status()
            assert (after.workers, after.running, after.lost_workers) == (1, 0, 1)
            assert after.since == idle.since


async def test_job_that_ends_three_workers_is_given_up(tmp_path, build_tree, meeting):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        workers = farm.start_workers(count=4)
        async with open_front(farm.address) as front:
            engine = await front.engine()
            async with running(engine, meeting.script("sleep 600")) as outcomes:
                for _ in range(3):
                    processes = await meeting.wait()
                    member_of(processes, workers).kill()
                    await wait_gone(processes)
        (failure,) = outcomes
        assert failure.problem == "The compile ended 3 workers of the farm"
        assert sum(worker.process.poll() is None for worker in workers) == 1


async def test_job_is_not_to_blame_for_workers_where_it_only_waited(tmp_path, build_tree, meeting):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        workers = farm.start_workers(count=3)
        async with open_front(farm.address) as front:
            engine = await front.engine()
            async with running(engine, meeting.hanging_once) as outcomes:
                killed = member_of(await meeting.wait(), workers)
                others = [worker for worker in workers if worker is not killed]
                for worker in others:
                    worker.pause()
                for count, worker in enumerate((killed, *others), 1):
                    worker.kill()
                    await wait_until(engine, lambda count=count: len(engine._farm.nodes.nodes) <= 3 - count)
                await anyio.to_thread.run_sync(farm.start_workers)
                await meeting.wait()
        ((_, compiled),) = outcomes
        assert compiled.result.status == 0


async def test_compile_ends_when_nobody_waits_for_it(tmp_path, build_tree, meeting):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        farm.start_workers("--slots", "1")
        async with open_front(farm.address) as front:
            engine = await front.engine()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, engine, meeting.script("sleep 600"))
                processes = await meeting.wait()
                tasks.cancel_scope.cancel()
            await wait_gone(processes)
            # Its slot is free again.
            _, compiled = await run(engine)
            assert compiled.result.status == 0


async def test_job_waits_for_the_next_scheduler(tmp_path, build_tree, meeting):
    with stand_in_farm(tmp_path, build_tree) as farm:
        scheduler = farm.start_scheduler()
        (worker,) = farm.start_workers()
        async with open_front(farm.address) as front:
            engine = await front.engine()
            async with running(engine, meeting.hanging_once) as outcomes:
                processes = await meeting.wait()
                scheduler.kill()
                await wait_gone(processes)
                await anyio.to_thread.run_sync(farm.start_scheduler)
                await meeting.wait()
        ((_, compiled),) = outcomes
        assert compiled.result.status == 0
        assert worker.process.poll() is None


async def test_worker_that_is_stopped_ends_its_jobs_first(tmp_path, build_tree, meeting):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        workers = farm.start_workers("--drain-timeout", "60", count=2)
        async with open_front(farm.address) as front:
            engine = await front.engine()
            async with running(engine, meeting.waiting) as outcomes:
                stopped = member_of(await meeting.wait(), workers)
                stopped.begin_stop()
                # What comes when that is known goes to the other one.
                await anyio.to_thread.run_sync(lambda: stopped.log.wait("takes no new jobs"))
                done, _ = await run(engine)
                assert done.record.worker == f"n{1 - workers.index(stopped)}"
                meeting.go_on()
                assert await anyio.to_thread.run_sync(stopped.process.wait, 60) == 0
        ((done, compiled),) = outcomes
        assert compiled.result.status == 0
        assert done.record.worker == f"n{workers.index(stopped)}"


async def test_job_that_a_stopped_worker_does_not_end_in_time_runs_elsewhere(tmp_path, build_tree, meeting):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        workers = farm.start_workers("--drain-timeout", "0", count=2)
        async with open_front(farm.address) as front:
            engine = await front.engine()
            async with running(engine, meeting.hanging_once) as outcomes:
                stopped = member_of(await meeting.wait(), workers)
                stopped.begin_stop()
                await meeting.wait()
                assert await anyio.to_thread.run_sync(stopped.process.wait, 60) == 0
        ((done, compiled),) = outcomes
        assert compiled.result.status == 0
        assert done.record.worker == f"n{1 - workers.index(stopped)}"


async def test_changed_toolchain_is_offered_anew(tmp_path, build_tree):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        (worker,) = farm.start_workers()
        async with open_front(farm.address) as front:
            engine = await front.engine()
            await offered(engine)
            before = engine.promise(job(engine))
            (build_tree / "Module.symvers").write_text("0x1 changed")
            await anyio.to_thread.run_sync(lambda: worker.log.wait("is offered", count=2))
            # As a server's job that was promised the toolchain of before.
            _, compiled = await run(engine, toolchain=before, elsewhere=True)
            assert compiled.elsewhere.toolchain != before


@pytest.mark.parametrize("fallback", ["refuse", "wait"])
async def test_without_a_farm_a_request_is_refused_in_time(fallback):
    async with open_front("tcp://127.0.0.1:9") as front:
        engine = await front.engine(farm_fallback=fallback, farm_wait_s=0.5)
        with pytest.raises(TranslatorError, match="The farm cannot be reached"):
            await run(engine)
        status = engine.status()
        assert (status.connected, status.workers, status.waiting) == (False, 0, 0)
        assert engine.release_health[RELEASE].reason == "The farm cannot be reached"


async def test_without_a_farm_a_request_is_compiled_here_if_the_headers_are(build_tree):
    async with open_front("tcp://127.0.0.1:9") as front:
        engine = await front.engine(farm_fallback="local", farm_wait_s=0.5)
        engine.releases[RELEASE] = attrs.evolve(engine.releases[RELEASE], build_tree=build_tree)
        done, compiled = await run(engine)
        engine._follow()
        assert engine.release_health[RELEASE].health is Health.UNTRIED
        assert (compiled.elsewhere, front.local.jobs) == (None, [done])
        assert engine.promise(done) is None


async def test_pool_is_as_large_as_the_farm(tmp_path, build_tree):
    with stand_in_farm(tmp_path, build_tree) as farm:
        farm.start_scheduler()
        farm.start_workers("--slots", "3", count=2)
        async with open_front(farm.address) as front:
            engine = await front.engine()
            pool = WorkerPool(1, queue_length=None)
            engine.join(pool)
            await offered(engine)
            await run(engine)
            assert pool.statistics().workers == 6


@pytest.mark.parametrize(
    ("releases", "tuning", "said"),
    [
        ((RELEASE,), {"farm": None}, "there is no farm"),
        ((RELEASE,), {"farm": "tls://localhost:1"}, "FARM_CA and FARM_CERT and FARM_KEY are not set"),
        (("/usr/src/linux",), {}, "is a path of this host"),
    ],
)
async def test_settings_that_cannot_be_served_are_refused(releases, tuning, said):
    async with open_front("tcp://127.0.0.1:9") as front:
        with pytest.raises(ConfigError, match=said):
            await front.engine(releases=releases, **tuning)
