"""The engine of one server: the result cache over single flight over the engine that compiles.

A request is looked up by its key, computed once; else one compile runs for all equal requests that are here,
when one of their clients gets a worker. All of them have the result before it is stored and before what the
compile left behind is removed.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial

import anyio

from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.cache.key import NOT_SCANNED, CacheKey, request_digest
from stapsrv.compile.cache.result_cache import Miss, ResultCache
from stapsrv.compile.engine.base import CompileJob, Engine
from stapsrv.compile.memory import MemoryBudget
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.single_flight import SingleFlight
from stapsrv.compile.stats import CacheCounts, Source, Stage, timed

# What follows a compile takes the processor from the answer, which is still to be signed and sent.
_HEAD_START_S = 0.05
# Of a request's digest, for people: enough to tell requests apart.
_DIGEST_CHARACTERS = 12
# Different requests that are counted.
_MOST_ASKED = 10_000
# Cached results that are read at the same time.
_READERS = 4


class CachedEngine:
    """Compiles for the requests of one server, within :meth:`open`; all servers share the ``cache``."""

    def __init__(
        self,
        engine: Engine,
        pool: WorkerPool,
        cache: ResultCache | None = None,
        *,
        memory: MemoryBudget,
        promise: Callable[[CompileJob], bytes | None] = lambda _job: None,
    ) -> None:
        self._engine = engine
        self._promise = promise  # of an engine on other hosts (see RemoteEngine)
        self._pool = pool
        self._cache = cache
        self._memory = memory
        # A result that is read has its memory before the next one is; clients take turns, as for workers.
        self._readers = WorkerPool(_READERS, queue_length=None)
        self._single_flight: SingleFlight[Miss] = SingleFlight(max_finishing=pool.statistics().workers)
        self.counts = CacheCounts()
        # Nobody asks for those of jobs in the background: what people read is of clients.
        self._background_counts = CacheCounts()
        self._asked: Counter[bytes] = Counter()

    def open(self) -> AbstractAsyncContextManager[None]:
        """Serve requests while the block runs; at its end, compiles are cancelled and clean-up is bounded."""
        return self._single_flight.open()

    @contextlib.asynccontextmanager
    async def answer(self, job: CompileJob) -> AsyncIterator[CacheEntry]:
        """Yield the result of a job (see :class:`Engine`), whose memory is held for the block.

        The source goes on record.
        """
        entry = await self._find(job)
        try:
            yield entry
        finally:
            entry.release()

    async def _find(self, job: CompileJob) -> CacheEntry:
        cache, entry = self._cache_for(job), None
        job.record.digest = request_digest(job.request).hex()[:_DIGEST_CHARACTERS]
        with timed(job.record, Stage.LOOKUP):
            key = await self.key_for(job)
            if not job.background:
                self._note_asked(key)
            if cache is not None:
                entry = await self._read(cache, key, job)
        if entry is not None:
            job.record.source = Source.HIT
            self._counts_for(job).hits += 1
            return entry
        if self._single_flight.has_begun(key.flight_key):
            _log_begun(job, self._single_flight.begun + 1)
        if self._single_flight.is_flying(key.flight_key):
            job.record.enter(Stage.SHARED)
        flight = await self._single_flight.run(
            key.flight_key,
            job.client,
            worker=partial(self._worker, job),
            work=partial(self._compile, cache, key, job),
            finish=partial(self._finish, cache),
        )
        job.record.source = Source.SHARED if flight.joined else Source.COMPILED
        self._counts_for(job).shared += flight.joined
        await flight.value.entry.hold(self._memory, job)
        return flight.value.entry

    def times_asked(self, key: CacheKey) -> int:
        """Return how often clients asked for this lately, in whatever usual locale."""
        return self._asked[key.common_digest or key.request_digest]

    def _note_asked(self, key: CacheKey) -> None:
        if len(self._asked) >= _MOST_ASKED:
            # Of those asked for once there is no end.
            self._asked = Counter(dict(self._asked.most_common(_MOST_ASKED // 2)))
        self._asked[key.common_digest or key.request_digest] += 1

    async def key_for(self, job: CompileJob) -> CacheKey:
        """Return the cache key of a job, after a bounded wait for inputs that are being scanned."""
        cache = self._cache_for(job)
        if cache is None:
            return CacheKey(request_digest(job.request), reason="off")
        return await cache.wait_key_for(job, self._promise(job))

    async def pin(self, keys: Iterable[CacheKey], *, only: bool) -> None:
        """Have the results of these keys evicted after all others; with ``only``, no others so."""
        if self._cache is not None:
            await self._cache.pin(keys, only=only)

    def _cache_for(self, job: CompileJob) -> ResultCache | None:
        # None also for an operator who wants to see what compiles leave behind.
        wanted = job.settings.limits.result_cache and not job.settings.keep_temporary
        return self._cache if wanted else None

    def _counts_for(self, job: CompileJob) -> CacheCounts:
        return self._background_counts if job.background else self.counts

    async def _read(self, cache: ResultCache, key: CacheKey, job: CompileJob) -> CacheEntry | None:
        await cache.wait_stored(key)
        async with self._readers.worker(job.client, wait_s=job.settings.limits.queue_s):
            entry = await cache.get(key)
            if entry is not None:
                await entry.hold(self._memory, job)
            return entry

    async def _compile(self, cache: ResultCache | None, key: CacheKey, job: CompileJob) -> Miss:
        _log_begun(job, self._single_flight.begun)
        counts = self._counts_for(job)
        if key.environment_digest is not None:
            counts.misses += 1
        elif cache is not None:
            counts.uncacheable[key.reason or NOT_SCANNED] += 1
        with timed(job.record, Stage.COMPILE):
            if cache is None:
                compiled = await self._engine.compile(job)
                miss = Miss(key, job, compiled, CacheEntry.final(compiled.result, key.reason))
            else:
                miss = await cache.compile(key, job, self._engine)
        if job.record.build is not None:
            counts.builds[job.record.build] += 1
        try:
            # With the worker, so that there are never more results without memory than workers.
            await miss.entry.hold(self._memory, job)
        except BaseException:
            with anyio.CancelScope(shield=True):
                if cache is not None:
                    cache.close(miss)
                await miss.compiled.release()
            raise
        return miss

    async def _finish(self, cache: ResultCache | None, miss: Miss) -> None:
        """Once the requests have their result: store it, and remove what the compile left behind."""
        try:
            async with contextlib.AsyncExitStack() as leaving:
                leaving.callback(miss.entry.release)
                leaving.push_async_callback(miss.compiled.release)
                leaving.callback(self._count, cache, miss)
                with anyio.move_on_after(_HEAD_START_S):
                    await miss.job.answered.wait()
                if cache is not None:
                    await cache.store(miss)
        except Exception:
            miss.job.log.exception("request.untidy")

    def _count(self, cache: ResultCache | None, miss: Miss) -> None:
        if cache is not None and miss.key.environment_digest is not None:
            cache.close(miss)
            counts = self._counts_for(miss.job)
            if miss.entry.reason is None:
                counts.stored += 1
            else:
                counts.uncacheable[miss.entry.reason] += 1

    @contextlib.asynccontextmanager
    async def _worker(self, job: CompileJob) -> AsyncIterator[None]:
        if job.background:
            # Its caller bounds how many there are; clients have all workers to themselves.
            yield
            return
        before = self._pool.statistics()
        if before.running >= before.workers:
            job.log.warning("request.overloaded")
        async with contextlib.AsyncExitStack() as held:
            worker = self._pool.worker(job.client, wait_s=job.settings.limits.queue_s)
            try:
                with timed(job.record, Stage.QUEUE):
                    await held.enter_async_context(worker)
            except anyio.get_cancelled_exc_class():
                # Another place of its flight had a worker first.
                if job.record.stage is Stage.QUEUE:
                    job.record.enter(Stage.SHARED)
                raise
            yield


def _log_begun(job: CompileJob, running: int) -> None:
    # With those that share a compile: each has a thread of its own in the original, which counts threads.
    if job.background:
        return
    if running > 1:
        job.log.info("request.many", running=running)
    else:
        job.log.info("request.one")
