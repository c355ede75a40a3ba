"""A whole request becomes an answer: zip -> release served? -> queue -> worker: stap -> sign.

Equal requests that are here at the same time wait for one compile; each is signed for by itself.

Whatever goes wrong on the way that a client can be told of becomes an answer of this server's own:
exit status 1 and a line that begins with ``Server:``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.entry import CacheEntry, ResponseVariant
from stapsrv.compile.cache.key import CacheKey, request_digest
from stapsrv.compile.cache.result_cache import ResultCache
from stapsrv.compile.context import CompileService, ServedIdentity
from stapsrv.compile.engine.base import Compiled, CompileJob, CompileResult
from stapsrv.compile.engine.signing import (
    SIGNED_PRIVILEGES,
    add_signatures,
    has_modules,
    refuse_signing_options,
    without_signatures,
)
from stapsrv.compile.health import Health
from stapsrv.compile.protocol.request import CompileRequest, parse_request, render_arguments
from stapsrv.compile.protocol.response import CompileResponse, encode_response
from stapsrv.compile.stats import Outcome, RequestRecord, Source, digest_options
from stapsrv.config.kernels import ServedRelease, normalise_arch
from stapsrv.errors import ProtocolError, RequestRejected, StapsrvError, TranslatorError
from stapsrv.rejection import RejectReason

_HEAD_START_S = 0.05
"""How long what a compile left behind is left alone, for the sake of the answer."""


class RequestHandler:
    """One request and its answer.

    Args:
        service: the server that it came to.
        client: what fairness goes by: the same for all connections of one client.
        identity: whose signatures the answer carries.
        record: filled in as the request goes on.
        log: the connection's.
    """

    def __init__(
        self,
        service: CompileService,
        *,
        client: str,
        identity: ServedIdentity,
        record: RequestRecord,
        log: Log,
    ) -> None:
        self._service = service
        self._limits = service.settings.limits
        self._client = client
        self._identity = identity
        self._record = record
        self._log = log
        self._known: CacheEntry | None = None
        self._sent = anyio.Event()

    async def respond(self, received: bytes | StapsrvError, *, deflate: bool) -> bytes:
        """Return the zip of stap's answer, or of this server's own when it comes to no answer of stap's.

        Args:
            received: the request's zip, or why it could not be taken.
            deflate: whether a smaller answer is worth the work.
        """
        counts = self._service.counts
        counts.accepted += 1
        try:
            answer = await self._compile(await self._parse(received), deflate=deflate)
        except (ProtocolError, RequestRejected, TranslatorError) as exc:
            counts.failed += 1
            reason = exc
            self._service.refusals.note(
                exc.refusal, lambda: self._log.warning("request.rejected", reason=reason)
            )
            answer = encode_response(self._refusal(exc))
        except Exception:  # noqa: BLE001 - the one net below a request: its client still gets an answer
            counts.failed += 1
            self._log.exception("request.crashed")
            fault = TranslatorError("The server failed on this request; its log says why")
            answer = encode_response(self._refusal(fault))
        except BaseException:
            counts.failed += 1
            raise
        else:
            counts.done += 1
        return answer

    async def settle(self) -> None:
        """Once the answer is sent: wait until it is known whether the result is kept; put that on record."""
        self._sent.set()
        if self._known is not None:
            await self._known.settled.wait()
            self._record.uncacheable = self._known.reason

    def refuse_stopping(self) -> CompileResponse:
        """Return the answer to a request that is broken off because the server stops."""
        return self._refusal(
            TranslatorError("The compile was ended: the server is stopping", remedy="try again later")
        )

    async def _parse(self, received: bytes | StapsrvError) -> CompileRequest:
        if isinstance(received, StapsrvError):
            raise received
        parse = functools.partial(parse_request, max_request_bytes=self._service.settings.max_request_bytes)
        request = await anyio.to_thread.run_sync(parse, received)
        self._record.release = request.release
        self._record.options = digest_options(request.arguments)
        self._log.info("request.version", version=request.version)
        self._log.info("request.options", options=render_arguments(request.arguments))
        return request

    async def _compile(self, request: CompileRequest, *, deflate: bool) -> bytes:
        release = self._served_release(request)
        refuse_signing_options(request.arguments)
        job = CompileJob(request=request, release=release, settings=self._service.settings)
        known = self._known = await self._result(job)
        self._record.uncacheable = known.reason
        answer = known.response_for(self._identity, kind := _answer_kind(job, deflate=deflate))
        self._record.rc = known.result.status
        if answer is None:
            with self._timed("sign_s"):
                response = await self._sign(job, known.result)
            self._record.rc = response.rc
            encode = functools.partial(encode_response, response, deflate=deflate)
            answer = await anyio.to_thread.run_sync(encode)
            known.keep_response(self._identity, kind, answer)
        self._record.outcome = Outcome.ANSWERED
        return answer

    def _served_release(self, request: CompileRequest) -> ServedRelease:
        releases = self._service.releases
        release = releases.get(request.release)
        if release is not None and normalise_arch(request.arch) == release.arch:
            return release
        self._log.warning("request.unserved", release=request.release)
        served = ", ".join(known.sysinfo for known in releases.values())
        raise RequestRejected(
            f"Target kernel version {request.release} {request.arch} is not supported by this server, "
            f"which serves {served}"
        )

    async def _result(self, job: CompileJob) -> CacheEntry:
        """Return what stap makes of a job: known already, or for all equal requests that are here now."""
        cache = self._cache(job)
        question = CacheKey(request_digest(job.request)) if cache is None else await cache.wait_key_for(job)
        known = None if cache is None else await cache.find(question)
        if known is not None:
            self._record.source = Source.HIT
            self._service.cache_counts.hits += 1
            return known

        landed = await self._service.flights.run(
            question.flight,
            self._client,
            worker=self._worker,
            work=functools.partial(self._work, cache, question, job),
        )
        self._record.source = Source.SHARED if landed.joined else Source.COMPILED
        self._service.cache_counts.shared += landed.joined
        return landed.value

    @contextlib.asynccontextmanager
    async def _work(
        self, cache: ResultCache | None, question: CacheKey, job: CompileJob
    ) -> AsyncIterator[CacheEntry]:
        """Compile a job; its result is answered within the block, and kept and tidied up after it."""
        answered = False
        try:
            async with contextlib.AsyncExitStack() as stack:
                if cache is None:
                    compiled = await stack.enter_async_context(self._run(job))
                    known = CacheEntry.settle_as(compiled.result, "off")
                else:
                    counts = self._service.cache_counts
                    known = await stack.enter_async_context(cache.compiled(question, job, self._run, counts))
                answered = True
                yield known
                # What follows takes the processor from the answer, which is still to be signed and sent.
                with anyio.move_on_after(_HEAD_START_S):
                    await self._sent.wait()
        except Exception:
            if not answered:
                raise
            self._log.exception("request.untidy")

    @contextlib.asynccontextmanager
    async def _run(self, job: CompileJob) -> AsyncIterator[Compiled]:
        """Have the engine compile a job, and note what that shows of its release."""
        async with contextlib.AsyncExitStack() as stack:
            with self._timed("compile_s"):
                compiled = await stack.enter_async_context(
                    self._service.engine.compiled(job, deadline_s=self._limits.compile_s, kept=self._log_kept)
                )
            standing = self._service.standings.get(job.release.name)
            if standing is not None and compiled.result.status == 0 and has_modules(compiled.result.files):
                standing.become(Health.HEALTHY)
            yield compiled

    def _cache(self, job: CompileJob) -> ResultCache | None:
        """Return the cache, unless the operator wants none or wants to see what compiles leave behind."""
        wanted = self._limits.result_cache and not job.settings.keep_temporary
        return self._service.cache if wanted else None

    async def _sign(self, job: CompileJob, result: CompileResult) -> CompileResponse:
        """Return the answer that ``result`` makes, with the signatures that its modules need."""
        request = job.request
        messages = list(request.messages)
        if result.limit_met is not None:
            self._log.warning("request.limited", reason=result.limit_met)
            messages.append(f"Server: {result.limit_met}")
        own = "".join(f"{message}\n" for message in messages).encode()
        answer = CompileResponse(
            version=self._service.version,
            rc=result.status,
            stdout=result.stdout,
            stderr=own + result.stderr,
            files=without_signatures(result.files),
        )
        if result.status != 0 or not has_modules(answer.files):
            return answer
        if request.fingerprints or request.mok_missing:
            answer = await self._sign_for_kernel(job, answer)
        # Last, since it covers the module as it is loaded.
        if job.privilege in SIGNED_PRIVILEGES:
            answer = attrs.evolve(answer, files=await add_signatures(answer.files, self._identity.sign))
        return answer

    async def _sign_for_kernel(self, job: CompileJob, answer: CompileResponse) -> CompileResponse:
        signed = await self._service.kernel_signer.sign(
            answer.files, job.request.fingerprints, job.release.build_tree
        )
        self._log.info("mok.signed" if signed.trusted else "mok.offered", fingerprint=signed.key)
        return attrs.evolve(
            answer,
            rc=answer.rc if signed.trusted else 1,
            stderr=answer.stderr + signed.message,
            files=signed.files,
        )

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[None]:
        """Hold a worker, after a bounded wait in the queue."""
        pool = self._service.pool
        before = pool.statistics()
        if before.running >= before.workers:
            self._log.warning("request.overloaded")
        async with contextlib.AsyncExitStack() as held:
            with self._timed("queue_s"), anyio.move_on_after(self._limits.queue_s) as scope:
                await held.enter_async_context(pool.worker(self._client))
            if scope.cancelled_caught:
                raise RequestRejected(
                    f"The server is busy: no worker was free within {self._limits.queue_s:g} seconds",
                    remedy="try again later",
                    refusal=RejectReason.QUEUE_TIMEOUT,
                )
            running = pool.statistics().running
            if running > 1:
                self._log.info("request.many", running=running)
            else:
                self._log.info("request.one")
            yield

    def _log_kept(self, directory: Path) -> None:
        self._log.info("request.kept", directory=directory)

    @contextlib.contextmanager
    def _timed(self, duration: str) -> Iterator[None]:
        """Add the time that the block takes to a duration of the record."""
        began = anyio.current_time()
        try:
            yield
        finally:
            spent = getattr(self._record, duration) + anyio.current_time() - began
            setattr(self._record, duration, spent)

    def _refusal(self, exc: StapsrvError) -> CompileResponse:
        text = exc.problem if exc.remedy is None else f"{exc.problem}; {exc.remedy}"
        self._record.outcome = Outcome.REFUSED
        self._record.refusal = exc.problem
        self._record.rc = 1
        return CompileResponse(version=self._service.version, rc=1, stderr=f"Server: {text}\n".encode())


def _answer_kind(job: CompileJob, *, deflate: bool) -> ResponseVariant | None:
    """Return what an answer is made for, beside the result and who signs it; None if it is made each time."""
    request = job.request
    if request.fingerprints or request.mok_missing:
        return None
    return ResponseVariant(
        deflate=deflate, signed=job.privilege in SIGNED_PRIVILEGES, messages=request.messages
    )
