"""Results that are known: an equal request is answered without stap, as long as nothing has changed.

A result is found by a digest of all that it depends on (:meth:`ResultCache.ask`): what the request holds,
the server's options, and the state of this host as far as stap looks at it
(:mod:`stapsrv.compile.cache.inputs`).
Whether it depends on anything else is not guessed. The request has to be one that is known to be repeatable
(:mod:`stapsrv.compile.cache.cacheable`), the compiler's own lists have to name no file from elsewhere
(:mod:`stapsrv.compile.cache.depfile`), the C that stap made no program of a user's. Results are kept as stap
made
them, without any signature.

stap has a cache of its own, and takes no notice of a changed header. A module that comes from there was not
built, so there is no list of what it was built from: then all that its C includes has to be found in the
known headers. The means by which each module was built are remembered. If they have changed since, stap
is made to build it anew, and likewise the first module after any change of them. What it has found out
about the kernel's types, which goes into modules that were never built before, is removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial

import anyio
import anyio.to_thread
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.cacheable import (
    build_options_are_known,
    find_outside,
    includes_are_inside,
    module_name,
    uncacheable_reason,
)
from stapsrv.compile.cache.disk import NOTE, DiskStore
from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.cache.inputs import UNSEEN, HostInputs
from stapsrv.compile.cache.key import UNKNOWN, CacheKey, digest, request_digest
from stapsrv.compile.cache.script_scan import Tapsets
from stapsrv.compile.cache.stap_cache import forget_types
from stapsrv.compile.cache.storage import ResultStorage
from stapsrv.compile.cache.watcher import InputWatcher
from stapsrv.compile.engine.base import Compiled, CompileJob, CompileResult
from stapsrv.compile.protocol.options import parse_options
from stapsrv.compile.stats import CacheCounts, CacheStatistics
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.system.blocking import BlockingCalls

_LOOK_S = 10.0
"""How long a request waits for a look at what its result depends on: it takes a second, after a change."""
_PATIENCE_S = 10.0
"""For stap's own files, and for a result that is being kept: a compile helps as well."""
_LONG_S = 60.0
"""For a look at many files."""
_DISK = "disk"

Run = Callable[[CompileJob], AbstractAsyncContextManager[Compiled]]
"""Compiles a job; what the compile left behind is there for as long as the block runs."""


@attrs.frozen
class _Attempt:
    """A compile whose result may be kept.

    Attributes:
        question: asked before.
        job: what is compiled.
        unsettled: the compiles, until then, during which the means changed.
        types_known: whether stap knows no types by other means.
    """

    question: CacheKey
    job: CompileJob
    unsettled: int
    types_known: bool


class ResultCache:
    """The results of this process's servers.

    Args:
        surroundings: what they depend on.
        grounds: keeps watch over it.
        store: where results are kept.
        log: hears of what is wrong with it.
    """

    def __init__(
        self, surroundings: HostInputs, grounds: InputWatcher, store: DiskStore, *, log: Log
    ) -> None:
        self._surroundings = surroundings
        self._grounds = grounds
        self._shelf = ResultStorage(store, log=log)
        self._log = log
        self._settling: dict[str, CacheEntry] = {}
        self._tapsets = Tapsets()
        self._unsettled = 0
        """Compiles during which the means changed: what they left in stap's cache may be of either."""
        self._settled = 0
        self._files = BlockingCalls(timeout_s=_PATIENCE_S)

    def watch(self, releases: Iterable[ServedRelease], settings: ServerSettings) -> None:
        """Begin to watch over what a server's results depend on."""
        if self._surroundings.fault is None:
            for release in releases:
                self._grounds.want(self._surroundings.premises(release, settings).places)

    def ask(self, job: CompileJob) -> CacheKey:
        """Return the question that a job is, as of now; stap's ``rc`` file as it was looked at last."""
        settings, release = job.settings, job.release
        asked = CacheKey(request_digest(job.request), rc=self._surroundings.rc.stamp)
        if self._surroundings.fault is not None:
            return attrs.evolve(asked, reason=self._surroundings.fault)
        premises = self._surroundings.premises(release, settings)
        # Before the fingerprints, lest what is heard of with the second escapes the first.
        changes = self._grounds.changes(premises.tapsets), self._grounds.changes(premises.means)
        asked = attrs.evolve(asked, changes=changes)
        if not build_options_are_known(settings.build, settings.define):
            return attrs.evolve(asked, reason="server options")
        state = self._surroundings.state(release)
        if state is None:
            return attrs.evolve(asked, reason="rc")
        tapsets = self._grounds.fingerprint(premises.tapsets)
        means = self._grounds.fingerprint(premises.means)
        if tapsets is None or means is None:
            unwatched = self._grounds.fault(premises.places) is not None
            return attrs.evolve(asked, reason="unwatched" if unwatched else UNKNOWN)
        means = digest((_means_digest(settings, release), means))
        premise = digest((means, _script_digest(settings), tapsets, state))
        return attrs.evolve(asked, premise=premise, means=means)

    async def wait_key_for(self, job: CompileJob) -> CacheKey:
        """Return the question that a job is, after a bounded wait for places that are being looked at.

        Without a look nobody knows whether stap's own cache is still right.
        """
        await self._look_at_rc()
        question = self.ask(job)
        if question.reason != UNKNOWN:
            return question
        with anyio.move_on_after(_LOOK_S):
            await self._grounds.wait_scanned(self._surroundings.premises(job.release, job.settings).places)
        await self._look_at_rc()
        return self.ask(job)

    async def _look_at_rc(self) -> None:
        """Have the surroundings know stap's ``rc`` file as it is; where it hangs, nobody knows."""
        try:
            self._surroundings.rc = await self._files.run(self._surroundings.look_at_rc)
        except OSError as exc:
            self._log.warning("cache.unreadable", reason=exc.strerror)
            self._surroundings.rc = UNSEEN

    async def find(self, question: CacheKey) -> CacheEntry | None:
        """Return the answer to a question, if it is known, or is about to be."""
        if question.premise is None:
            return None
        name = question.name
        settling = self._settling.get(name)
        if settling is not None:
            with anyio.move_on_after(_PATIENCE_S):
                await settling.settled.wait()
        return await self._shelf.find(name)

    @contextlib.asynccontextmanager
    async def compiled(
        self, question: CacheKey, job: CompileJob, run: Run, counts: CacheCounts
    ) -> AsyncIterator[CacheEntry]:
        """Have a job compiled; when the block has ended, the result is kept if that is right.

        Args:
            question: asked before.
            job: what to compile.
            run: compiles a job.
            counts: the server's.

        Raises:
            Exception: what ``run`` raises.
        """
        if question.premise is None:
            reason = question.reason or UNKNOWN
            counts.uncacheable[reason] += 1
            async with self._run(question, job, run) if reason == UNKNOWN else run(job) as compiled:
                yield CacheEntry.settle_as(compiled.result, reason)
            return
        counts.misses += 1
        unsettled = self._unsettled
        attempt = _Attempt(question, job, unsettled, await self._forget_types(question, job))
        async with self._by_these_means(attempt, run) as compiled:
            known = self._settling[question.name] = CacheEntry(compiled.result)
            verdict: str | None = UNKNOWN
            try:
                yield known
                doubt = await self._judge(attempt, compiled)
                if doubt is None and not await self._shelf.keep(question.name, known):
                    doubt = _DISK
                verdict = doubt
            finally:
                if verdict is None:
                    counts.stored += 1
                else:
                    counts.uncacheable[verdict] += 1
                known.settle(verdict)
                if self._settling.get(question.name) is known:
                    del self._settling[question.name]

    async def statistics(self) -> CacheStatistics:
        """Return a snapshot; the directory is read for it."""
        return await self._shelf.statistics()

    async def _forget_types(self, question: CacheKey, job: CompileJob) -> bool:
        """Have stap forget the kernel's types if these may be others now; return whether that is done."""
        noted, unsettled = _types_means(job), self._unsettled
        if unsettled == self._settled and await self._shelf.read(noted) == question.means:
            return True
        # First: where nothing can be noted, it would be forgotten for each request.
        if not await self._shelf.note(noted, b""):
            return False
        try:
            await self._files.run(partial(forget_types, self._surroundings.stap_cache), timeout_s=_LONG_S)
        except OSError as exc:
            self._log.warning("cache.unwritable", reason=exc)
            return False
        self._settled = unsettled
        return await self._shelf.note(noted, question.means)

    @contextlib.asynccontextmanager
    async def _by_these_means(self, attempt: _Attempt, run: Run) -> AsyncIterator[Compiled]:
        """Have a job compiled; once more, if stap had a result in its cache that may be by other means."""
        question, job = attempt.question, attempt.job
        anew = await self._shelf.read(_last_means(job)) not in {None, question.means}
        async with self._run(question, attrs.evolve(job, anew=anew), run) as compiled:
            if compiled.built or not await self._is_stale(attempt, compiled.result):
                yield compiled
                return
        async with self._run(question, attrs.evolve(job, anew=True), run) as compiled:
            yield compiled

    @contextlib.asynccontextmanager
    async def _run(self, question: CacheKey, job: CompileJob, run: Run) -> AsyncIterator[Compiled]:
        """Have a job compiled, and remember by which means, however it ends."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                compiled = await stack.enter_async_context(run(job))
            finally:
                self._unsettled += not self._means_hold(question, job)
            if job.anew:
                # At once: until this is noted, whatever else is asked for is built anew as well.
                await self._note_build(question, job, compiled)
            yield compiled
            await self._note_first(question, job)
            if not job.anew:
                await self._note_build(question, job, compiled)

    def _means_hold(self, question: CacheKey, job: CompileJob) -> bool:
        """Whether the means were known, and have been the same ever since the question."""
        now = self.ask(job)
        return (
            question.premise is not None
            and now.premise is not None
            and (now.means, now.changes[1]) == (question.means, question.changes[1])
        )

    async def _note_first(self, question: CacheKey, job: CompileJob) -> None:
        """Remember by which means a server like this was met for the first time."""
        if question.premise is not None and await self._shelf.read(_first_means(job)) is None:
            await self._shelf.note(_first_means(job), question.means)

    async def _note_build(self, question: CacheKey, job: CompileJob, compiled: Compiled) -> None:
        """Remember by which means a module was built, if it was; none, if they changed or fell short."""
        is_limited = compiled.result.limit_met is not None
        means = b"" if is_limited or not self._means_hold(question, job) else question.means
        # A module that a client named is not in stap's cache, where there may be another of that name.
        is_named = any(name == "m" for name, _value in parse_options(job.request.arguments).options)
        if compiled.built and not is_named:
            await self._shelf.note(_module_means(compiled.result), means)
        if question.premise is not None and (compiled.built or is_limited):
            await self._shelf.note(_last_means(job), means)

    async def _is_stale(self, attempt: _Attempt, result: CompileResult) -> bool:
        """Whether a result that could be kept came from stap's own cache, and may be by other means.

        What it had before this program looked at it for the first time is taken as it is, as stap does.
        """
        question, job = attempt.question, attempt.job
        await self._note_first(question, job)
        if await self._why_not(attempt, result) is not None:
            return False
        means = await self._shelf.read(_module_means(result))
        if means is None:
            means = await self._shelf.read(_first_means(job))
        return means != question.means

    async def _judge(self, attempt: _Attempt, compiled: Compiled) -> str | None:
        """Return why a result cannot be kept, in a word; None if it can."""
        question, job = attempt.question, attempt.job
        reason = await self._why_not(attempt, compiled.result) or await self._doubt(job, compiled)
        if reason is not None:
            return reason
        # Last, so that nothing is between this look and the end of the compile but work of our own.
        await self._look_at_rc()
        now = self.ask(job)
        seen = (now.premise, now.changes, self._unsettled)
        if seen != (question.premise, question.changes, attempt.unsettled):
            return "changed"
        return None

    async def _why_not(self, attempt: _Attempt, result: CompileResult) -> str | None:
        """Return why a result is not the same each time, in a word."""
        job, changes = attempt.job, attempt.question.changes[0]
        if not attempt.types_known:
            return _DISK
        places = self._surroundings.premises(job.release, job.settings).tapsets
        try:
            outward = await self._tapsets.names_reading_host_files(places, changes, self._files)
        except OSError as exc:
            self._log.warning("cache.unreadable", reason=exc.strerror)
            return _DISK
        return await anyio.to_thread.run_sync(uncacheable_reason, job, result, outward)

    async def _doubt(self, job: CompileJob, compiled: Compiled) -> str | None:
        """Return what there is against it that a result depends on nothing but what is known, in a word."""
        if not compiled.built:
            if await self._shelf.read(_outside(compiled.result)) is not None:
                return "outside"
            return None if includes_are_inside(compiled.result) else "no evidence"
        places = self._surroundings.premises(job.release, job.settings).places
        try:
            build = await compiled.read_build()
            find = partial(find_outside, compiled.result, build, places)
            outside = await self._files.run(find, timeout_s=_LONG_S)
        except OSError as exc:
            self._log.warning("cache.unreadable", reason=exc.strerror)
            return _DISK
        if outside is not None:
            self._log.info("cache.outside", file=outside)
            # When it comes from stap's own cache, nothing shows that any more.
            await self._shelf.note(_outside(compiled.result), os.fsencode(outside))
            return "outside"
        return None


def _module_means(result: CompileResult) -> str:
    """Return what is kept under is: the means by which stap last built the module of this name."""
    return NOTE + digest((b"module", (module_name(result) or "").encode())).hex()


def _outside(result: CompileResult) -> str:
    """Return what is kept under is: a file from elsewhere that the module of this name was made from."""
    return NOTE + digest((b"outside", (module_name(result) or "").encode())).hex()


def _last_means(job: CompileJob) -> str:
    """Return what is kept under is: the means by which stap last built anything for a server like this."""
    return NOTE + digest((b"last", _means_digest(job.settings, job.release))).hex()


def _types_means(job: CompileJob) -> str:
    """Return what is kept under is: the means that there were when stap last forgot the kernel's types."""
    return NOTE + digest((b"types", _means_digest(job.settings, job.release))).hex()


def _first_means(job: CompileJob) -> str:
    """Return what is kept under is: the means that there were when a server like this was first met."""
    return NOTE + digest((b"first", _means_digest(job.settings, job.release))).hex()


def _script_digest(settings: ServerSettings) -> bytes:
    """Return a digest of the options that decide on the C that stap makes, and on nothing after that."""
    return digest(digest(map(os.fsencode, values)) for values in (settings.define, settings.include))


def _means_digest(settings: ServerSettings, release: ServedRelease) -> bytes:
    """Return a digest of the options that decide on what is made of that C."""
    limits = settings.limits
    lists = (settings.build, limits.sandbox_read, limits.sandbox_write)
    single = (settings.arch, settings.runtime, release.argument, str(release.build_tree), release.arch)
    return digest(
        [*(digest(map(os.fsencode, values)) for values in lists), *(os.fsencode(str(one)) for one in single)]
    )
