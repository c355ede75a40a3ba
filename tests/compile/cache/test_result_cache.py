"""The result cache: what is answered from it, what is never, and what makes it forget."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest
import structlog
from kit.service import LogLines

from stapsrv.compile.cache import result_cache
from stapsrv.compile.cache.disk import DiskStore
from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.inputs import InputPaths, RcFile
from stapsrv.compile.cache.key import CacheKey
from stapsrv.compile.cache.result_cache import Miss, ResultCache
from stapsrv.compile.cache.script_scan import scan_tapsets
from stapsrv.compile.cache.watcher import InputWatcher
from stapsrv.compile.engine.base import Compiled, CompileJob, CompileResult, Elsewhere
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.system.blocking import BlockingCalls

pytestmark = pytest.mark.anyio

NO_RC = RcFile(b"", is_cacheable=True)


@attrs.define
class FakeInputs:
    """A small world: tapsets in one directory, everything else in another."""

    directory: Path
    fault: str | None = None
    stated: bytes | None = b"state"
    rc: RcFile = NO_RC
    read_rc: Callable[[], RcFile] = lambda: NO_RC

    def paths(self, _release: ServedRelease, settings: ServerSettings) -> InputPaths:
        further = tuple(WatchedPath(include) for include in settings.include)
        return InputPaths(
            (WatchedPath(str(self.directory / "tapset")), *further),
            (WatchedPath(str(self.directory / "tree")),),
        )

    def state_digest(self, _release: ServedRelease) -> bytes | None:
        return self.stated if self.rc.is_cacheable else None


@attrs.frozen
class FakeStap:
    """An engine of one function."""

    compile: Callable[[CompileJob], Awaitable[Compiled]]


@attrs.define
class World:
    """A cache, and a stap that notes how it was run."""

    directory: Path
    inputs: FakeInputs
    cache: ResultCache
    lines: LogLines
    watcher: InputWatcher
    runs: list[CompileJob] = attrs.field(factory=list)
    kept: list[CompileJob] = attrs.field(factory=list)
    """Whose findings are kept."""
    released: int = 0
    status: int = 0
    limit_met: str | None = None
    evidence: bool = True
    """Whether the compiler leaves lists of the files that it read."""
    outside: tuple[str, ...] = ()
    code: bytes = b'#include "runtime.h"\n#include <linux/mm.h>\n'
    meddle: Path | None = None
    """Changed while stap runs."""
    passing: Path | None = None
    """There for a while when stap runs, and known to be there."""

    def job(self, *arguments: bytes, **settings: object) -> CompileJob:
        return CompileJob(
            log=structlog.get_logger(),
            request=CompileRequest(
                release="6.1", arch="x86_64", arguments=arguments or (b"-p4", b"-eprobe begin {}")
            ),
            release=ServedRelease("6.1", "x86_64", "6.1", self.directory / "tree"),
            settings=ServerSettings(**settings),
        )

    async def ask(self, *arguments: bytes, **settings: object) -> str:
        """Answer a request as a server does; return where the answer came from."""
        job = self.job(*arguments, **settings)
        paths = self.inputs.paths(job.release, job.settings)
        if self.inputs.fault is None:
            await self.watcher.wait_scanned(paths.all)
        key = self.cache.key_for(job)
        if await self.cache.get(key) is not None:
            return "hit"
        return (await self.compile(key, job)).reason or "stored"

    async def compile(
        self, key: CacheKey, job: CompileJob, run: Callable[[CompileJob], Awaitable[Compiled]] | None = None
    ) -> CacheEntry:
        """Have a job compiled, and wait until its result is stored or not."""
        miss = await self.cache.compile(key, job, FakeStap(run or self.run_stap))
        assert miss.entry.reason is not None
        await self.finish(miss)
        assert miss.entry.stored.is_set()
        return miss.entry

    async def finish(self, miss: Miss) -> None:
        """Do what is left to do after the response."""
        try:
            await self.cache.store(miss)
        finally:
            self.cache.close(miss)
            await miss.compiled.release()

    async def _pass(self) -> None:
        assert self.passing is not None
        places = self.inputs.paths(self.job().release, self.job().settings).all
        for change in (self.passing.touch, self.passing.unlink):
            change()
            await self.watcher.wait_scanned(places)

    async def run_stap(self, job: CompileJob) -> Compiled:
        self.runs.append(job)
        if self.meddle is not None:
            self.meddle.write_text("meddled")
        if self.passing is not None:
            await self._pass()
        await anyio.lowlevel.checkpoint()

        async def read_dependencies() -> frozenset[str]:
            await anyio.lowlevel.checkpoint()
            return frozenset({f"{self.directory}/tree/x.h", *self.outside} if self.evidence else ())

        async def keep_findings() -> None:
            self.kept.append(job)

        files = (
            ResponseFile("stap000000/stap_1.ko", (self.directory / "tree" / "x.h").read_bytes()),
            ResponseFile("stap000000/stap_1_src.c", self.code),
        )
        result = CompileResult(self.status, b"out", b"err", files, self.limit_met)

        async def release() -> None:
            self.released += 1

        return Compiled(result, read_dependencies, keep_findings, release)

    def uses(self) -> list[int]:
        """Return which cache of stap's each run had, as numbers in order of appearance."""
        used = list(dict.fromkeys(job.toolchain for job in self.runs))
        return [used.index(job.toolchain) for job in self.runs]


@contextlib.asynccontextmanager
async def world(directory: Path, *, lay_out: bool = True, **inputs: object) -> AsyncIterator[World]:
    if lay_out:
        for name in ("tapset", "tree"):
            (directory / name).mkdir()
        (directory / "tapset" / "a.stp").write_text('probe user.begin = process("/bin/ls").begin {}')
        (directory / "tree" / "x.h").write_text("/* */")
    lines = LogLines()
    with anyio.fail_after(60), contextlib.closing(InputWatcher(log=lines.log)) as watcher:
        surroundings = FakeInputs(directory, **inputs)
        store = DiskStore(directory / "results", max_bytes=1 << 20, max_age_s=1000.0)
        cache = ResultCache(surroundings, watcher, store, log=lines.log)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.run)
            yield World(directory, surroundings, cache, lines, watcher)
            tasks.cancel_scope.cancel()


async def test_equal_request_is_a_hit(tmp_path):
    async with world(tmp_path) as w:
        assert [await w.ask() for _ in range(3)] == ["stored", "hit", "hit"]
        assert len(w.runs) == 1
        known = await w.cache.get(w.cache.key_for(w.job()))
        assert known is not None
        assert (known.result.status, known.result.stdout, known.result.stderr) == (0, b"out", b"err")
        assert known.result.files[0].data == b"/* */"
        assert w.cache._storage._store.statistics().entries == 1


async def test_results_outlive_the_process(tmp_path):
    async with world(tmp_path) as w:
        await w.ask()
    async with world(tmp_path, lay_out=False) as w:
        assert await w.ask() == "hit"
        assert w.runs == []


async def test_other_request_or_settings_make_another_key(tmp_path):
    async with world(tmp_path) as w:
        assert await w.ask() == "stored"
        assert await w.ask(b"-p4", b"-eprobe end {}") == "stored"
        for settings in (
            {"define": ("X=1",)},
            {"build": ("V=1",)},
            {"runtime": "/r"},
            {"include": (str(tmp_path / "far"),)},
        ):
            assert await w.ask(**settings) == "stored"
        assert await w.ask() == "hit"


async def test_stated_architecture_makes_another_key_only_if_it_is_another(tmp_path):
    async with world(tmp_path) as w:
        assert await w.ask() == "stored"
        stated = w.job(arch="x86_64")
        assert await w.ask(arch="x86_64") == "hit"
        other = attrs.evolve(stated, release=attrs.evolve(stated.release, arch="i386"))
        keys = [w.cache.key_for(job) for job in (stated, other)]
        assert keys[0].environment_digest != keys[1].environment_digest


async def test_release_that_the_server_states_itself_makes_no_other_key(tmp_path):
    script = (b"-p4", b"-eprobe begin {}")
    async with world(tmp_path) as w:
        assert await w.ask(*script) == "stored"
        assert await w.ask(b"-r6.1", *script) == "hit"
        # Another one would go before the server's.
        assert await w.ask(b"-r6.2", *script) == "option"
        given = w.job(b"-r6.1", *script)
        tree = attrs.evolve(given.release, argument="/tree")
        keys = [w.cache.key_for(attrs.evolve(given, release=release)) for release in (given.release, tree)]
        assert keys[0].request_digest != keys[1].request_digest
        # Of several, stap takes the last.
        twice, other = (w.job(*options, *script) for options in ((b"-r6.2", b"-r6.1"), (b"-r6.2",)))
        assert w.cache.key_for(twice).flight_key != w.cache.key_for(other).flight_key


async def test_rc_is_read_for_each_request_and_may_hang(tmp_path, monkeypatch):
    async with world(tmp_path) as w:
        job = w.job()
        await w.watcher.wait_scanned(w.inputs.paths(job.release, job.settings).all)
        assert (await w.cache.wait_key_for(job)).reason is None
        gate = threading.Event()
        w.inputs.read_rc = gate.wait
        w.cache._files = BlockingCalls(grace_s=0.1)
        with monkeypatch.context() as hasty:
            hasty.setattr(w.cache._files, "timeout_s", 0.2)
            assert (await w.cache.wait_key_for(job)).reason == "rc"
        assert "cache.unreadable" in w.lines.events()
        gate.set()
        w.inputs.read_rc = lambda: NO_RC
        key = await w.cache.wait_key_for(job)
        assert key.reason is None
        w.inputs.read_rc = lambda: RcFile(b"of another kind", is_cacheable=False)
        assert (await w.compile(key, job)).reason == "changed"


async def test_search_that_takes_too_long_keeps_a_result_from_being_stored(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(result_cache, "uncacheable_reason", lambda *_: gate.wait())
    monkeypatch.setattr(result_cache, "_MANY_FILES_S", 0.2)
    async with world(tmp_path) as w:
        w.cache._files = BlockingCalls(grace_s=0.1)
        assert await w.ask() == "size"
        # Nobody waits for the search any more, not even the end of the process.
        assert w.cache._files.abandoned == 1
        gate.set()


@pytest.mark.parametrize("changed", ["tapset/a.stp", "tapset/new.stp", "tree/x.h", "tree/new"])
async def test_changed_input_makes_another_key(tmp_path, changed):
    async with world(tmp_path) as w:
        assert await w.ask() == "stored"
        (tmp_path / changed).write_text("changed")
        assert await w.ask() == "stored"
        assert await w.ask() == "hit"


async def test_changed_host_state_makes_another_key(tmp_path):
    async with world(tmp_path) as w:
        assert await w.ask() == "stored"
        w.inputs.stated = b"another"
        assert await w.ask() == "stored"
        w.inputs.stated = None
        assert await w.ask() == "rc"


async def test_wait_for_inputs_that_keep_changing_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("stapsrv.compile.cache.result_cache._SCAN_S", 0.05)
    async with world(tmp_path) as w:
        monkeypatch.setattr(w.watcher, "fingerprint", lambda _places: None)
        assert (await w.cache.wait_key_for(w.job())).reason == "unknown yet"


async def test_changed_input_gives_no_hit_before_its_scan(tmp_path):
    async with world(tmp_path) as w:
        await w.ask()
        (tmp_path / "tree" / "x.h").write_text("changed")
        key = w.cache.key_for(w.job())
        assert (key.environment_digest, key.reason) == (None, "unknown yet")
        assert await w.cache.get(key) is None
        key = await w.cache.wait_key_for(w.job())
        assert key.environment_digest is not None


async def test_tapsets_are_read_while_stap_compiles(tmp_path, monkeypatch):
    """And by one at a time, for all that need it."""
    reading, reads = threading.Event(), []

    def read(paths: tuple[WatchedPath, ...]) -> frozenset[str]:
        reads.append(paths)
        reading.set()
        return frozenset()

    async def run(job: CompileJob) -> Compiled:
        assert await anyio.to_thread.run_sync(reading.wait, 20)
        return await w.run_stap(job)

    monkeypatch.setattr("stapsrv.compile.cache.result_cache.scan_tapsets", read)
    async with world(tmp_path) as w, w.cache.open():
        key = await w.cache.wait_key_for(w.job())
        assert (await w.compile(key, w.job(), run)).reason is None
        assert reading.is_set()
    assert len(reads) == 1


async def test_tapsets_are_read_again_only_after_a_change(tmp_path, monkeypatch):
    reads = []

    def read(paths: tuple[WatchedPath, ...]) -> frozenset[str]:
        reads.append(paths)
        return scan_tapsets(paths)

    monkeypatch.setattr("stapsrv.compile.cache.result_cache.scan_tapsets", read)
    async with world(tmp_path) as w:
        further = {"include": (str(tmp_path / "tree"),)}
        for settings, count in ({}, 1), (further, 2), ({}, 2):
            assert await w.ask(b"-p4", b"-eprobe user.begin {}", **settings) == "program"
            assert len(reads) == count
        (tmp_path / "tapset" / "a.stp").write_text('probe person.begin = process("/bin/ls").begin {}')
        assert await w.ask(b"-p4", b"-eprobe user.begin {}") == "stored"
        assert await w.ask(b"-p4", b"-eprobe person.begin {}") == "program"
        assert len(reads) == 3


async def test_request_during_the_store_gets_the_entry(tmp_path):
    async with world(tmp_path) as w:
        key = await w.cache.wait_key_for(w.job())
        found: list[CacheEntry | None] = []

        async def find() -> None:
            await w.cache.wait_stored(key)
            found.append(await w.cache.get(key))

        async with anyio.create_task_group() as tasks:
            miss = await w.cache.compile(key, w.job(), FakeStap(w.run_stap))
            tasks.start_soon(find)
            await anyio.wait_all_tasks_blocked()
            assert found == []
            await w.finish(miss)
        assert found == [miss.entry]


async def test_result_whose_store_was_cancelled_is_not_stored(tmp_path):
    async with world(tmp_path) as w:
        key = await w.cache.wait_key_for(w.job())
        miss = await w.cache.compile(key, w.job(), FakeStap(w.run_stap))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await w.finish(miss)
        assert (miss.entry.reason, miss.entry.stored.is_set()) == ("unknown yet", True)
        assert await w.cache.get(key) is None


@pytest.mark.parametrize(
    ("attributes", "arguments", "reason"),
    [
        ({"status": 1}, (), "failure"),
        ({"limit_met": "too many processes"}, (), "limit"),
        ({}, (b"-v", b"-eprobe begin {}"), "option"),
        ({}, (b'-eprobe process("/bin/ls").begin {}',), "program"),
        ({}, (b"-eprobe user.begin {}",), "program"),
        ({"outside": ("/etc/hostname",)}, (), "outside"),
        ({"outside": ("TREE/../elsewhere.h",)}, (), "outside"),
        ({"code": b'{ .procname="/bin/ls", }'}, (), "outside"),
        ({"code": b'.path = "/usr/bin/ls",'}, (), "outside"),
        ({"evidence": False}, (), "no evidence"),
    ],
    ids=str,
)
async def test_result_that_may_differ_is_not_stored(tmp_path, attributes, arguments, reason):
    async with world(tmp_path) as w:
        for name, value in attributes.items():
            setattr(w, name, value)
        w.outside = tuple(path.replace("TREE", f"{tmp_path}/tree") for path in w.outside)
        assert [await w.ask(*arguments) for _ in range(2)] == [reason, reason]
        assert len(w.runs) == 2


async def test_program_at_the_end_of_large_code_is_found(tmp_path):
    async with world(tmp_path) as w:
        w.code = b"/* */\n" * 200_000 + b'{ .procname="/bin/ls", }'
        assert await w.ask() == "outside"


async def test_file_behind_a_link_below_a_watched_path_is_watched(tmp_path):
    (tmp_path / "linked").mkdir()
    async with world(tmp_path) as w:
        (tmp_path / "tree" / "link").symlink_to("../linked")
        w.outside = (f"{tmp_path}/tree/link/y.h",)
        assert await w.ask() == "stored"
        (tmp_path / "linked" / "y.h").touch()
        assert await w.ask() == "stored"
        w.outside = (f"{tmp_path}/linked/y.h",)
        assert await w.ask(b"-p4", b"-eprobe end {}") == "outside"


async def test_result_of_compile_with_a_change_is_not_stored(tmp_path):
    async with world(tmp_path) as w:
        w.meddle = tmp_path / "tree" / "x.h"
        assert await w.ask() == "changed"
        w.meddle = None
        assert await w.ask() == "stored"


@pytest.mark.parametrize("where", ["tree", "tapset"])
async def test_result_of_compile_with_a_passing_change_is_not_stored(tmp_path, where):
    """All places are what they were before, and stap may have read what was there in between."""
    async with world(tmp_path) as w:
        await w.watcher.wait_scanned(w.inputs.paths(w.job().release, w.job().settings).all)
        before = w.cache.key_for(w.job())
        w.passing = tmp_path / where / "passing.stp"
        assert await w.ask() == "changed"
        after = w.cache.key_for(w.job())
        assert before.environment_digest is not None
        assert after.environment_digest == before.environment_digest
        assert after.flight_key != before.flight_key
        w.passing = None
        assert await w.ask() == "stored"


async def test_findings_of_requests_are_not_kept(tmp_path):
    async with world(tmp_path) as w:
        await w.ask()
        await w.ask(b"-v", b"-eprobe begin {}")
        assert w.kept == []


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [({}, 1), ({"status": 1}, 0), ({"limit_met": "too many processes"}, 0), ({"meddle": "tree/x.h"}, 0)],
    ids=str,
)
async def test_findings_of_the_server_s_own_script_are_kept_if_it_succeeds(tmp_path, attributes, kept):
    async with world(tmp_path) as w:
        for name, value in attributes.items():
            setattr(w, name, tmp_path / value if name == "meddle" else value)
        await w.cache.run(w.job(), FakeStap(w.run_stap))
        assert (len(w.kept), w.released) == (kept, 1)


async def test_findings_are_kept_also_where_no_result_is_and_something_has_changed_before(tmp_path):
    async with world(tmp_path) as w:
        await w.ask()
        (tmp_path / "tree" / "x.h").write_text("changed")
        w.inputs.fault = "debuginfod"
        await w.cache.run(w.job(), FakeStap(w.run_stap))
        assert len(w.kept) == 1


async def test_fault_in_tapsets_that_are_read_beside_a_compile_ends_nothing_else(tmp_path, monkeypatch):
    async with world(tmp_path) as w, w.cache.open():
        job, scans = w.job(), []

        async def fail(*_arguments: object) -> frozenset[str]:
            scans.append(job)
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(w.cache, "_names_reading_host_files", fail)
        await w.watcher.wait_scanned(w.inputs.paths(job.release, job.settings).all)
        miss = await w.cache.compile(w.cache.key_for(job), job, FakeStap(w.run_stap))
        w.cache.close(miss)
        await miss.compiled.release()
        while not scans:
            await anyio.lowlevel.checkpoint()
        assert (scans, miss.compiled.result.status) == ([job], 0)


async def test_what_stap_knows_is_of_the_toolchain_of_now(tmp_path):
    """stap itself takes no notice of a changed header."""
    async with world(tmp_path) as w:
        await w.ask()
        (tmp_path / "tree" / "x.h").write_text("changed")
        assert await w.ask() == "stored"
        entry = await w.cache.get(w.cache.key_for(w.job()))
        assert entry is not None
        assert entry.result.files[0].data == b"changed"
        assert await w.ask(b"-v", b"-eprobe begin {}") == "option"
        assert await w.ask(define=("X=1",)) == "stored"
        assert await w.ask(include=(str(tmp_path / "more"),)) == "stored"
        assert w.uses() == [0, 1, 1, 1, 1]


async def test_tapset_change_leaves_what_stap_knows(tmp_path):
    async with world(tmp_path) as w:
        await w.ask()
        (tmp_path / "tapset" / "b.stp").write_text("")
        assert await w.ask() == "stored"
        assert w.uses() == [0, 0]


async def test_compile_before_the_first_scan_leaves_nothing_for_later_ones(tmp_path):
    async with world(tmp_path) as w:
        job = w.job()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(w.watcher, "fingerprint", lambda _places: None)
            entry = await w.compile(w.cache.key_for(job), job)
            assert entry.reason == "unknown yet"
        assert await w.ask() == "stored"
        assert [job.toolchain == b"" for job in w.runs] == [True, False]


async def test_result_with_server_options_that_make_expands_is_not_stored(tmp_path):
    async with world(tmp_path) as w:
        assert await w.ask(build=("X=$(shell date)",)) == "server options"


async def test_fault_of_the_host_is_the_reason(tmp_path):
    async with world(tmp_path, fault="debuginfod") as w:
        assert await w.ask() == "debuginfod"


@pytest.mark.parametrize(
    ("inputs", "settings", "reason"),
    [
        ({}, {}, "unknown yet"),
        ({"rc": RcFile(b"1", is_cacheable=False)}, {}, "rc"),
        ({}, {"build": ("CC=/x",)}, "server options"),
    ],
)
async def test_request_after_change_does_not_join_older_compile(tmp_path, inputs, settings, reason):
    """Even where nothing is known for certain: no such request joins the compile of another."""
    async with world(tmp_path, **inputs) as w:
        job = w.job(**settings)
        await w.watcher.wait_scanned(w.inputs.paths(job.release, job.settings).all)

        def flight() -> object:
            key = w.cache.key_for(job)
            assert key.reason == reason
            return key.flight_key

        (tmp_path / "tapset" / "a.stp").write_text("1")
        w.cache.key_for(job)
        before = flight()
        assert flight() == before
        (tmp_path / "tapset" / "a.stp").write_text("2")
        changed = flight()
        assert changed != before
        w.inputs.rc = attrs.evolve(w.inputs.rc, stamp=b"2")
        assert flight() != changed


async def test_damaged_entry_is_removed_and_compiled_again(tmp_path):
    async with world(tmp_path) as w:
        await w.ask()
        for file in (tmp_path / "results").iterdir():
            file.write_bytes(file.read_bytes()[:-1] + b"?")
        w.cache._storage._memory.clear()
        assert await w.ask() == "stored"
        assert "cache.damaged" in w.lines.events()
        assert await w.ask() == "hit"


async def test_entry_that_another_process_removed_is_no_hit(tmp_path):
    async with world(tmp_path) as w:
        await w.ask()
        DiskStore(tmp_path / "results", max_bytes=1, max_age_s=1.0).clear()
        assert await w.ask() == "stored"


async def test_request_succeeds_where_the_disk_cannot_be_written(tmp_path):
    async with world(tmp_path) as w:
        (tmp_path / "results").mkdir(mode=0o500)
        assert await w.ask() == "disk"
        (tmp_path / "results").chmod(0o700)
        assert "cache.unwritable" in w.lines.events()


async def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("stapsrv.compile.cache.storage._MEMORY_BYTES", 100)
    async with world(tmp_path) as w:
        for number in range(5):
            await w.ask(b"-p4", b"-eprobe begin { print(%d) }" % number)
        assert len(w.cache._storage._memory) <= 2
        assert await w.ask(b"-p4", b"-eprobe begin { print(0) }") == "hit"


@pytest.mark.parametrize("call", ["read", "write", "use"])
async def test_request_is_compiled_while_the_directory_hangs(tmp_path, monkeypatch, call):
    """Whatever is asked of it; and it is of use again when it answers again."""
    go = threading.Event()
    async with world(tmp_path) as w:
        w.cache._storage._files = BlockingCalls(grace_s=0.1)
        assert await w.ask() == "stored"
        with monkeypatch.context() as patched:
            # Only here, where nothing else is to be in time.
            patched.setattr(w.cache._storage._files, "timeout_s", 0.2)
            patched.setattr(DiskStore, call, lambda *_arguments: go.wait())
            assert await w.ask(b"-p4", b"-eprobe end {}") in {"stored", "disk"}
            assert await w.ask() in {"hit", "stored", "disk"}
        assert w.cache._storage._files.abandoned
        go.set()
        assert await w.ask(b"-p4", b"-eprobe error {}") == "stored"
        assert await w.ask(b"-p4", b"-eprobe error {}") == "hit"


async def test_expired_entry_in_memory_is_no_hit(tmp_path):
    async with world(tmp_path) as w:
        await w.ask()
        (file,) = (path for path in (tmp_path / "results").iterdir() if not path.name.startswith("note-"))
        os.utime(file, (1000.0, 1000.0))
        assert await w.ask() == "stored"


async def test_entry_that_leaves_memory_during_the_look_up_is_a_hit(tmp_path, monkeypatch):
    async with world(tmp_path) as w:
        await w.ask()
        use = DiskStore.use

        def use_and_forget(store: DiskStore, name: str) -> bool:
            w.cache._storage._forget(name)
            return use(store, name)

        monkeypatch.setattr(DiskStore, "use", use_and_forget)
        assert await w.ask() == "hit"


PROMISED = b"toolchain of others"


async def ask_others(
    w: World, promised: bytes = PROMISED, elsewhere: Elsewhere | None = None, **settings
) -> str:
    """Answer a request whose engine compiles on other hosts; return where the answer came from."""
    job = w.job(**settings)
    key = await w.cache.wait_key_for(job, promised)
    if await w.cache.get(key) is not None:
        return "hit"

    async def run(job: CompileJob) -> Compiled:
        assert job.elsewhere
        assert job.toolchain == promised
        return attrs.evolve(await w.run_stap(job), elsewhere=elsewhere)

    return (await w.compile(key, job, run)).reason or "stored"


async def test_result_of_others_is_known_by_what_they_promise(tmp_path):
    async with world(tmp_path) as w:
        made = Elsewhere(PROMISED, None)
        assert [await ask_others(w, elsewhere=made) for _ in range(2)] == ["stored", "hit"]
        assert await ask_others(w, b"another", elsewhere=Elsewhere(b"another", None)) == "stored"
        assert await ask_others(w, elsewhere=made, define=("A=1",)) == "stored"
        # What this host has is another matter.
        assert await w.ask() == "stored"


@pytest.mark.parametrize(
    ("promised", "elsewhere", "reason"),
    [
        (PROMISED, Elsewhere(b"another", None), "changed"),
        (PROMISED, Elsewhere(PROMISED, "outside"), "outside"),
        # Compiled here after all.
        (PROMISED, None, "changed"),
        (b"", Elsewhere(PROMISED, None), "farm"),
    ],
)
async def test_result_that_others_did_not_promise_is_not_stored(tmp_path, promised, elsewhere, reason):
    async with world(tmp_path) as w:
        assert [await ask_others(w, promised, elsewhere) for _ in range(2)] == [reason] * 2


async def test_result_of_others_is_not_taken_for_one_of_this_host(tmp_path):
    async with world(tmp_path) as w:
        job = w.job()
        await w.watcher.wait_scanned(w.inputs.paths(job.release, job.settings).all)

        async def run(job: CompileJob) -> Compiled:
            return attrs.evolve(await w.run_stap(job), elsewhere=Elsewhere(job.toolchain, None))

        entry = await w.compile(w.cache.key_for(job), job, run)
        assert entry.reason == "changed"
