"""Compiles the scripts of servers' collections for each release that they serve, behind all clients.

A script is asked for as a client would: the result is in the result cache then, under the key of a client's
request. Compiles run at the priority of the warm-up, one for each core over the whole process, and on a farm
as many as it has slots; they take no worker from a client.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.key import CacheKey
from stapsrv.compile.context import CompileService
from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.engine.signing import refuse_signing_options
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.stats import Source
from stapsrv.config.kernels import MODULES, ServedRelease, host_arch
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError, LifecycleError, RequestRejected, TranslatorError
from stapsrv.scripts.collection import Collection as ScriptCollection
from stapsrv.scripts.directory import read_collection
from stapsrv.scripts.history import Changes
from stapsrv.scripts.matrix import (
    Cell,
    Difference,
    Inputs,
    Result,
    Verdict,
    differences,
    judge,
)
from stapsrv.scripts.report import Report
from stapsrv.scripts.script import Script, client_request
from stapsrv.supervisor.managed_server import ManagedServer
from stapsrv.supervisor.own_compiles import BuildKey
from stapsrv.supervisor.script_outcomes import ScriptOutcomes
from stapsrv.supervisor.state.script_runs import ScriptRuns
from stapsrv.supervisor.warmup import Warmup
from stapsrv.system.blocking import BlockingCalls
from stapsrv.text import tally

_CLIENT = "scripts"
_DIGITS = 32  # of a digest, in the file of what is remembered
# For a directory on a file system that hangs; its row says so.
_READ_S = 60.0
# What is found out meanwhile gives way to everything else on the host.
_FOUND_S = 600.0


@attrs.frozen
class CheckProgress:
    """A result, and how many of all there are by now."""

    result: Result
    done: int
    total: int


OnResult = Callable[[CheckProgress], Awaitable[None]]


@attrs.frozen
class _Case:
    """A script, or why a whole collection cannot be read, and for whom it is to compile."""

    cell: Cell
    script: Script
    service: CompileService
    release: ServedRelease


@attrs.define(eq=False)
class ScriptChecks:
    """The checks of one process; ``servers`` are those that serve now, and ``runs`` remembers."""

    _servers: Callable[[], Iterable[ManagedServer]]
    _runs: ScriptRuns
    _warmup: Warmup
    outcomes: ScriptOutcomes
    _log: Log
    _cores: int = attrs.field(factory=lambda: len(os.sched_getaffinity(0)))
    _files: BlockingCalls = attrs.field(init=False, factory=lambda: BlockingCalls(timeout_s=_READ_S))
    # Of the scripts of the check that runs, or was the last.
    _keys: list[CacheKey] = attrs.field(init=False, factory=list)
    # What renewals found different, and nobody has been shown.
    _unshown: dict[Cell, Difference] = attrs.field(init=False, factory=dict)
    _renewal: anyio.CancelScope | None = attrs.field(init=False, default=None)
    _one_at_a_time: anyio.Lock = attrs.field(init=False, factory=anyio.Lock)

    async def check(
        self, releases: Collection[str], *, changed: bool, on_result: OnResult | None = None
    ) -> Report:
        """Compile all scripts for all releases, or those named; with ``changed`` what is not known already.

        Raises:
            ConfigError: no server serves a release that is named.
            LifecycleError: a check is under way.

        Cancellation: compiles are ended; what is known by then is remembered.
        """
        if self._renewal is not None:
            self._renewal.cancel()
        elif self._one_at_a_time.statistics().locked:
            raise LifecycleError("a check of the scripts is running already", remedy="wait for its end")
        async with self._one_at_a_time:
            cases = await self._cases(releases)
            report = await self._check(cases, changed=changed, everything=not releases, on_result=on_result)
            told = {each.cell for each in report.differences}
            unshown = [each for cell, each in self._unshown.items() if cell not in told]
            self._unshown.clear()
            return attrs.evolve(report, differences=(*report.differences, *unshown))

    async def renew(self) -> None:
        """Compile what is not known already of the servers that may be warmed up, most asked for first.

        A check that somebody asks for comes before the rest of it.
        """
        if self._one_at_a_time.statistics().locked:
            return
        try:
            with anyio.CancelScope() as self._renewal:
                async with self._one_at_a_time:
                    await self._renew()
        finally:
            self._renewal = None

    async def _renew(self) -> None:
        cases = [case for case in await self._cases(()) if case.service.settings.limits.warmup]
        if not cases:
            return
        cases.sort(key=_times_asked, reverse=True)
        report = await self._check(cases, changed=True, on_result=None)
        for each in report.differences:
            self._log.warning("scripts.different", script=each.cell.script, difference=each.text)
            self._unshown[each.cell] = each
        for release, counts in self.outcomes.counts.items():
            self._log.info("scripts.checked", release=release, verdicts=tally(counts))

    def served(self) -> frozenset[tuple[str, str, tuple[str, ...]]]:
        """Return which releases scripts are checked for now, by their names and collections."""
        return frozenset(
            (label, release.name, service.settings.compilation.scripts)
            for label, service, release in self._targets()
        )

    def forget_unserved(self) -> None:
        """Have no outcomes of releases that no server has scripts checked for any more."""
        self.outcomes.keep({label for label, _, _ in self._targets()})

    def directories(self) -> list[str]:
        """Return the directories of all collections."""
        found = (service.settings.compilation.scripts for _, service, _ in self._targets())
        return list(dict.fromkeys(directory for each in found for directory in each))

    def watched(self) -> list[tuple[ServedRelease, ServerSettings]]:
        """Return the releases that this host compiles for, with the settings that count."""
        return [
            (release, service.settings)
            for _, service, release in self._targets()
            if service.elsewhere is None
        ]

    async def history(self, name: str) -> dict[Cell, Changes]:
        """Return what is remembered of the scripts of a name."""
        return (await self._files.run(self._runs.read)).of_script(name)

    async def _check(
        self, cases: Sequence[_Case], *, changed: bool, everything: bool = False, on_result: OnResult | None
    ) -> Report:
        history = await self._files.run(self._runs.read)
        results: list[Result] = []

        async def note(result: Result) -> None:
            results.append(result)
            if on_result is not None:
                await on_result(CheckProgress(result, len(results), len(cases)))

        known = history.last if changed else {}
        self._keys.clear()
        try:
            async with anyio.create_task_group() as tasks:
                # Those of a farm go there side by side, and wait for no core of this host.
                for slots, own in self._by_slots(cases):
                    waiting = iter(own)
                    for _ in range(min(slots, len(own))):
                        tasks.start_soon(self._work, waiting, known, note)
        finally:
            with anyio.CancelScope(shield=True):
                await self._files.run(partial(self._runs.write, history.with_results(results)))
        if cases:
            # All servers share one cache.
            await cases[0].service.engine.pin(self._keys, only=everything)
        self.outcomes.note_results(results, everything=everything)
        found = tuple(sorted(results, key=lambda result: result.cell))
        return Report(found, tuple(differences(history.last, found)))

    async def _work(
        self, cases: Iterator[_Case], known: dict[Cell, Result], note: Callable[[Result], Awaitable[None]]
    ) -> None:
        for case in cases:
            if case.service.elsewhere is None:
                with anyio.move_on_after(_FOUND_S):
                    # All that lack it would find it out, which takes minutes where tracepoints are new.
                    await self._warmup.findings.wait_found()
            await note(await self._result(case, known.get(case.cell)))

    async def _result(self, case: _Case, known: Result | None) -> Result:
        untried = partial(Result, cell=case.cell, verdict=Verdict.UNTRIED, at=time.time())
        if case.script.fault is not None:
            return untried(message=case.script.fault)
        if case.script.is_left_out(case.release.name):
            return untried(verdict=Verdict.LEFT_OUT)
        try:
            return await self._try(case, known)
        except TranslatorError as exc:
            # One with a bound says that the script met it: of time, or of what it prints.
            is_own = exc.reject_reason is not None
            return untried(verdict=Verdict.FAILS if is_own else Verdict.UNTRIED, message=exc.problem)
        except RequestRejected as exc:
            return untried(message=exc.problem if exc.remedy is None else f"{exc.problem}; {exc.remedy}")
        except Exception as exc:  # noqa: BLE001 - the one net below a script; the others go on
            self._log.exception("scripts.crashed", script=case.cell.script, release=case.cell.release)
            return untried(message=f"an error of this program: {exc!r}")

    async def _try(self, case: _Case, known: Result | None) -> Result:
        job = await self._job(case)
        key = await case.service.engine.key_for(job)
        self._keys.append(key)
        digests = (key.request_digest, key.toolchain_digest, key.environment_digest or b"")
        inputs = Inputs(*(each.hex()[:_DIGITS] for each in digests))
        if known is not None and inputs.are_known and known.inputs == inputs:
            return attrs.evolve(known, cached=True)
        return await self._compile(case, job, inputs)

    async def _job(self, case: _Case) -> CompileJob:
        service, release = case.service, case.release
        request = client_request(case.script, release=release.name, arch=release.arch)
        most = service.settings.max_request_bytes
        if (size := _request_bytes(request)) > most:
            problem = f"the request has {size} bytes, and the server takes {most}"
            raise RequestRejected(problem, remedy="raise MAXREQSIZE")
        job = CompileJob(
            request=request,
            release=release,
            table=await service.options.table_for(request.arguments),
            settings=service.settings,
            client=_CLIENT,
            log=service.log,
            background=True,
        )
        # Nobody waits for an answer, so nothing of what follows a compile is put off.
        job.answered.set()
        refuse_signing_options(job.options)
        return job

    async def _compile(self, case: _Case, job: CompileJob, inputs: Inputs) -> Result:
        began = anyio.current_time()
        async with case.service.engine.answer(job) as entry:
            seconds = anyio.current_time() - began
            await entry.stored.wait()
            result = entry.result
            verdict, message = judge(
                status=result.status,
                stderr=result.stderr,
                limit=result.limit_met,
                is_to_fail=case.script.is_to_fail(case.release.name),
            )
            return Result(
                cell=case.cell,
                verdict=verdict,
                message=message,
                seconds=job.record.compile_s or seconds,
                inputs=inputs,
                at=time.time(),
                cached=job.record.source is Source.HIT,
                uncacheable=entry.reason if verdict in {Verdict.OK, Verdict.WARNS} else None,
            )

    async def _cases(self, releases: Collection[str]) -> list[_Case]:
        targets = list(self._targets())
        served = dict.fromkeys(release.name for _, _, release in targets)
        if missing := [name for name in releases if name not in served]:
            remedy = f"they serve {', '.join(served) or 'none'}"
            raise ConfigError(f"no server with SCRIPTS serves {missing[0]}", remedy=remedy)
        collections: dict[str, ScriptCollection] = {}
        for _, service, _ in targets:
            for directory in service.settings.compilation.scripts:
                if directory not in collections:
                    collections[directory] = await self._read(directory)
        return list(self._arranged(targets, releases, collections))

    def _arranged(
        self,
        targets: Sequence[tuple[str, CompileService, ServedRelease]],
        releases: Collection[str],
        collections: dict[str, ScriptCollection],
    ) -> Iterator[_Case]:
        for label, service, release in targets:
            if releases and release.name not in releases:
                continue
            for directory in service.settings.compilation.scripts:
                collection = collections[directory]
                scripts = collection.scripts
                if collection.fault is not None:
                    scripts = (Script(collection=directory, name=directory, fault=collection.fault),)
                for script in scripts:
                    yield _Case(Cell(directory, script.name, label), script, service, release)

    async def _read(self, directory: str) -> ScriptCollection:
        try:
            return await self._files.run(partial(read_collection, directory))
        except OSError as exc:
            return ScriptCollection(directory, fault=f"the directory cannot be read: {exc.strerror}")

    def _targets(self) -> Iterator[tuple[str, CompileService, ServedRelease]]:
        """Yield each release with the first server that compiles so for it, and a name for the two.

        A release that was installed since the start is checked, too, where none of them serves it: as the
        first one's.
        """
        seen: set[object] = set()
        named: set[str] = set()
        at_work = [
            (each.nickname, each.server.service) for each in self._servers() if each.server is not None
        ]
        wanting = [
            (nickname, service) for nickname, service in at_work if service.settings.compilation.scripts
        ]
        for nickname, service in wanting:
            settings = service.settings
            for release in list(service.releases.values()):
                compilation = settings.compilation
                key = BuildKey.of(settings, release), compilation.engine, compilation.scripts
                if key in seen:
                    continue
                seen.add(key)
                label = release.name if release.name not in named else f"{release.name} ({nickname})"
                named.add(release.name)
                yield label, service, release
        here = next((service for _, service in wanting if service.elsewhere is None), None)
        for name in self.outcomes.arrived:
            if here is not None and name not in named:
                arch = here.settings.arch or host_arch()
                yield name, here, ServedRelease(name, arch, name, MODULES / name / "build")

    def _by_slots(self, cases: Sequence[_Case]) -> Iterator[tuple[int, list[_Case]]]:
        here = [case for case in cases if case.service.elsewhere is None]
        yield self._cores, here
        elsewhere = [case for case in cases if case.service.elsewhere is not None]
        if elsewhere:
            yield max(map(_slots_elsewhere, (case.service for case in elsewhere))), elsewhere


def _times_asked(case: _Case) -> int:
    if case.script.fault is not None:
        return 0
    release = case.release
    key = CacheKey.of(client_request(case.script, release=release.name, arch=release.arch))
    return case.service.engine.times_asked(key)


def _slots_elsewhere(service: CompileService) -> int:
    status = None if service.elsewhere is None else service.elsewhere.status()
    return max(1, 0 if status is None else status.slots)


def _request_bytes(request: CompileRequest) -> int:
    return sum(map(len, request.arguments)) + sum(len(file.data) for file in request.files)
