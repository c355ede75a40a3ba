"""The result cache: an equal request is answered without stap, as long as nothing has changed.

A result is found by its :class:`~stapsrv.compile.cache.key.CacheKey`: what the request holds, the server's
options, and the state of this host as far as stap looks at it (:mod:`stapsrv.compile.cache.inputs`).
Whether it depends on anything else is not guessed. The request has to be one that is known to be repeatable
(:mod:`stapsrv.compile.cache.cacheable`), the compiler's own lists must name no file from elsewhere
(:mod:`stapsrv.compile.cache.depfile`), and the C that stap made no program of a user's. Results are stored as
stap made them, without any signature.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from functools import partial

import anyio
import attrs
from anyio.abc import TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.cacheable import (
    are_build_options_cacheable,
    find_unwatched_file,
    has_compiler_messages,
    uncacheable_reason,
)
from stapsrv.compile.cache.disk import DiskStore
from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.inputs import UNREAD_RC, HostInputs, InputPaths
from stapsrv.compile.cache.key import NOT_SCANNED, CacheKey, digest
from stapsrv.compile.cache.script_scan import scan_tapsets
from stapsrv.compile.cache.storage import ResultStorage
from stapsrv.compile.cache.watcher import InputWatcher
from stapsrv.compile.engine.base import Compiled, CompileJob, CompileResult, Elsewhere, Engine
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.changes import ChangeCount

# A scan takes a second, after a change.
_SCAN_S = 10.0
# For stap's own files, and for an entry that is being stored: a compile helps as well.
_TIMEOUT_S = 10.0
# For all tapsets, and for what a compile has read: thousands of files.
_MANY_FILES_S = 60.0
_DISK = "disk"
# What is too large to be searched, or was not searched in time.
_SIZE = "size"


@attrs.frozen
class Miss:
    """A compile for which there was no entry, and what decides on whether its result is stored."""

    key: CacheKey
    job: CompileJob
    compiled: Compiled
    entry: CacheEntry


class ResultCache:
    """The results of this process's servers: ``store`` keeps them, ``watcher`` watches the ``inputs``."""

    def __init__(self, inputs: HostInputs, watcher: InputWatcher, store: DiskStore, *, log: Log) -> None:
        self._inputs = inputs
        self._watcher = watcher
        self._storage = ResultStorage(store, log=log)
        self._log = log
        self._storing: dict[str, CacheEntry] = {}
        # By the paths of tapsets: their generation, and the names in them that may make stap read host files.
        self._host_names: dict[tuple[WatchedPath, ...], tuple[int, frozenset[str]]] = {}
        self._one_scan_at_a_time = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._files = BlockingCalls(timeout_s=_TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Read tapsets beside the first compile, and not after it, as long as the block runs."""
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    def watch(self, releases: Iterable[ServedRelease], settings: ServerSettings) -> None:
        """Begin to watch what a server's results depend on."""
        if self._inputs.fault is None:
            for release in releases:
                self._watcher.watch(self._inputs.paths(release, settings).all)

    @property
    def input_changes(self) -> ChangeCount:
        """The changes of all that results depend on, as far as it is watched."""
        return self._watcher.changes

    async def wait_scanned(self, release: ServedRelease, settings: ServerSettings) -> None:
        """Wait until what a server's results for a release depend on is known, or cannot be."""
        if self._inputs.fault is None:
            await self._watcher.wait_scanned(self._inputs.paths(release, settings).all)

    async def wait_key_for(self, job: CompileJob, promised: bytes | None = None) -> CacheKey:
        """Return the key of a job, after a bounded wait for inputs that are being scanned.

        For a job of other hosts, what its engine ``promised`` stands for their inputs, which nobody scans.

        Also those wait whose result could not be stored: before the scan nobody knows which of stap's own
        caches is theirs.
        """
        if promised is not None:
            return _key_elsewhere(job, promised)
        await self._read_rc()
        key = self.key_for(job)
        if key.reason != NOT_SCANNED:
            return key
        with anyio.move_on_after(_SCAN_S):
            await self._watcher.wait_scanned(self._inputs.paths(job.release, job.settings).all)
        await self._read_rc()
        return self.key_for(job)

    def key_for(self, job: CompileJob) -> CacheKey:
        """Return the key of a job as of now; stap's ``rc`` file as it was read last."""
        settings, release = job.settings, job.release
        paths = self._inputs.paths(release, settings)
        # Before the fingerprints: a change that arrives between the two must not be lost.
        key = attrs.evolve(
            CacheKey.of(job.keyed_request),
            generation=self._generation(paths),
            rc_stamp=self._inputs.rc.stamp,
        )
        if self._inputs.fault is not None:
            return attrs.evolve(key, reason=self._inputs.fault)
        if not are_build_options_cacheable(settings.build, settings.define):
            return attrs.evolve(key, reason="server options")
        state = self._inputs.state_digest(release)
        if state is None:
            return attrs.evolve(key, reason="rc")
        tapsets = self._watcher.fingerprint(paths.tapsets)
        toolchain = self._watcher.fingerprint(paths.toolchain)
        if tapsets is None or toolchain is None:
            unwatched = self._watcher.fault(paths.all) is not None
            return attrs.evolve(key, reason="unwatched" if unwatched else NOT_SCANNED)
        toolchain = digest((_build_digest(settings, release), toolchain))
        return attrs.evolve(
            key,
            environment_digest=digest((toolchain, _options_digest(settings), tapsets, state)),
            toolchain_digest=toolchain,
            host_state=state,
        )

    async def get(self, key: CacheKey) -> CacheEntry | None:
        """Return the entry of a key, if it is stored."""
        if key.environment_digest is None:
            return None
        # Most are of usual locales, and said nothing in theirs.
        found = None if key.common_name is None else await self._storage.get(key.common_name)
        return await self._storage.get(key.name) if found is None else found

    async def pin(self, keys: Iterable[CacheKey], *, only: bool) -> None:
        """Evict the entries of these keys after all others; with ``only``, no others so."""
        await self._storage.pin({name for key in keys for name in key.names}, only=only)

    async def wait_stored(self, key: CacheKey) -> None:
        """Wait for an entry that is being stored, for a bounded time."""
        if (storing := self._storing.get(key.name)) is not None:
            with anyio.move_on_after(_TIMEOUT_S):
                await storing.stored.wait()

    async def compile(self, key: CacheKey, job: CompileJob, engine: Engine) -> Miss:
        """Compile a job that has no entry; then come :meth:`store` and, in any case, :meth:`close`."""
        if key.environment_digest is not None and not key.elsewhere and self._tasks is not None:
            # A second's work, for which the next equal request would wait.
            self._tasks.start_soon(self._read_tapsets, key, job)
        job = attrs.evolve(job, toolchain=key.toolchain_digest, elsewhere=key.elsewhere)
        compiled = await engine.compile(job)
        if key.environment_digest is None:
            return Miss(key, job, compiled, CacheEntry.final(compiled.result, key.reason))
        # Before any request has the result: the next equal one waits for the entry.
        entry = self._storing[key.name] = CacheEntry(compiled.result)
        return Miss(key, job, compiled, entry)

    async def store(self, miss: Miss) -> None:
        """Store a result if that is right, and say in its entry why not if it is not."""
        if miss.key.environment_digest is not None:
            reason = await self.judge(miss)
            if reason is None and not await self._storage.put(_entry_name(miss), miss.entry):
                reason = _DISK
            miss.entry.finish(reason)

    async def run(self, job: CompileJob, engine: Engine) -> CompileResult:
        """Compile a script of the server's own, and keep what stap finds out about the toolchain."""
        miss = await self.compile(await self.wait_key_for(job), job, engine)
        self.close(miss)
        paths = self._inputs.paths(job.release, job.settings)
        return await miss.compiled.finish(keep=lambda: self._generation(paths) == miss.key.generation)

    def close(self, miss: Miss) -> None:
        """Let no request wait for an entry any longer, also where :meth:`store` did not come to its end."""
        miss.entry.stored.set()
        if self._storing.get(miss.key.name) is miss.entry:
            del self._storing[miss.key.name]

    async def wait_changed(self, key: CacheKey, job: CompileJob) -> None:
        """Wait until the inputs of a job that are watched have changed since the key was made."""
        await self._watcher.wait_changed(
            self._inputs.paths(job.release, job.settings).all, since=sum(key.generation)
        )

    async def _read_rc(self) -> None:
        """Read stap's ``rc`` file anew; where its file system hangs, it counts as unknown."""
        try:
            self._inputs.rc = await self._files.run(self._inputs.read_rc)
        except OSError as exc:
            self._log.warning("cache.unreadable", reason=exc.strerror)
            self._inputs.rc = UNREAD_RC

    def _generation(self, paths: InputPaths) -> tuple[int, int]:
        return self._watcher.generation(paths.tapsets), self._watcher.generation(paths.toolchain)

    async def _is_unchanged(self, key: CacheKey, job: CompileJob) -> bool:
        """Whether nothing that a result depends on has changed since the key was made, not even briefly."""
        await self._read_rc()
        paths = self._inputs.paths(job.release, job.settings)
        return (
            self._inputs.fault is None
            and self._inputs.state_digest(job.release) == key.host_state
            and self._generation(paths) == key.generation
        )

    async def judge(self, miss: Miss) -> str | None:
        """Return, in a word, why a result is not to be stored; None if it is."""
        key, job, result = miss.key, miss.job, miss.compiled.result
        if key.elsewhere or miss.compiled.elsewhere is not None:
            return _judge_elsewhere(key, miss.compiled.elsewhere)
        paths = self._inputs.paths(job.release, job.settings).all
        try:
            names = await self._names_reading_host_files(key, job)
            search = partial(uncacheable_reason, job, result, names)
            try:
                # The clients have their result: a search that takes its time holds nobody up, a stop neither.
                reason = await self._files.run(search, timeout_s=_MANY_FILES_S)
            except TimeoutError:
                reason = _SIZE
            if reason is not None:
                return reason
            dependencies = await miss.compiled.read_dependencies()
            find = partial(find_unwatched_file, result, dependencies, paths)
            outside = await self._files.run(find, timeout_s=_MANY_FILES_S)
        except OSError as exc:
            self._log.warning("cache.unreadable", reason=exc.strerror)
            return _DISK
        if outside is not None:
            self._log.info("cache.outside", file=outside)
            return "outside"
        if not dependencies:
            return "no evidence"
        # Last, so that nothing but work of our own is between this check and the end of the compile.
        return None if await self._is_unchanged(key, job) else "changed"

    async def _read_tapsets(self, key: CacheKey, job: CompileJob) -> None:
        # Where it fails, it fails again where the names are needed, and is logged there.
        with contextlib.suppress(Exception):
            await self._names_reading_host_files(key, job)

    async def _names_reading_host_files(self, key: CacheKey, job: CompileJob) -> frozenset[str]:
        """Return the names in tapsets that may make stap read host files, read once after each change.

        Raises:
            OSError: the tapsets cannot be read.
        """
        tapsets, generation = self._inputs.paths(job.release, job.settings).tapsets, key.generation[0]
        async with self._one_scan_at_a_time:
            scanned = self._host_names.get(tapsets)
            if scanned is None or scanned[0] != generation:
                names = await self._files.run(partial(scan_tapsets, tapsets), timeout_s=_MANY_FILES_S)
                scanned = self._host_names[tapsets] = generation, names
        return scanned[1]


def _entry_name(miss: Miss) -> str:
    """Return the name for a result: that of all usual locales where its messages are the same in these."""
    common = miss.key.common_name
    return miss.key.name if common is None or has_compiler_messages(miss.compiled.result) else common


def _key_elsewhere(job: CompileJob, promised: bytes) -> CacheKey:
    """Return the key of a job that other hosts compile, with what they say that they have."""
    settings = job.settings
    key = attrs.evolve(CacheKey.of(job.keyed_request, elsewhere=True), toolchain_digest=promised)
    if not promised:
        return attrs.evolve(key, reason="farm")
    if not are_build_options_cacheable(settings.build, settings.define):
        return attrs.evolve(key, reason="server options")
    # What is a path in this server's settings, they do not take.
    own = [digest(map(os.fsencode, values)) for values in (settings.build, settings.define)]
    return attrs.evolve(key, environment_digest=digest((b"elsewhere", promised, *own)))


def _judge_elsewhere(key: CacheKey, elsewhere: Elsewhere | None) -> str | None:
    if not key.elsewhere or elsewhere is None:
        # It was compiled here where others were to, or by others where it was to be here.
        return "changed" if key.environment_digest is not None else key.reason
    if elsewhere.toolchain != key.toolchain_digest:
        return "changed"
    return elsewhere.uncacheable


def _build_digest(settings: ServerSettings, release: ServedRelease) -> bytes:
    # Of the options that decide on what stap keeps in its own cache; -a is no more than the release's.
    single = (settings.runtime, release.argument, str(release.build_tree), release.arch)
    return digest([digest(map(os.fsencode, settings.build)), *(os.fsencode(str(one)) for one in single)])


def _options_digest(settings: ServerSettings) -> bytes:
    limits = settings.limits
    lists = (settings.define, settings.include, limits.sandbox_read, limits.sandbox_write)
    return digest(digest(map(os.fsencode, values)) for values in lists)
