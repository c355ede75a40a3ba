"""A whole request becomes a response: zip -> release served? -> engine (cache, queue, stap) -> sign -> zip.

An error on the way becomes a response of this server's own: exit status 1 and a line that begins with
``Server:``.
"""

from __future__ import annotations

import contextlib
import functools

import anyio
import anyio.to_thread
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.cache.key import digest
from stapsrv.compile.context import CompileService
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.engine.signing import (
    SIGNED_PRIVILEGES,
    add_signatures,
    has_modules,
    refuse_signing_options,
    without_signatures,
)
from stapsrv.compile.health import Health
from stapsrv.compile.protocol.request import CompileRequest, parse_request, render_arguments
from stapsrv.compile.protocol.response import CompileResponse, EncodedResponse, ResponseFile, encode_response
from stapsrv.compile.stats import Outcome, RequestRecord, Source, Stage, timed
from stapsrv.config.kernels import ServedRelease, normalise_arch
from stapsrv.errors import ProtocolError, RequestRejected, StapsrvError, TranslatorError
from stapsrv.identity.certificate import Identity
from stapsrv.text import printable

# Of a request's options: enough to tell requests apart in a log.
_DIGEST_CHARACTERS = 8
# Of a response that is stored, not deflated, in less time than the way to a thread and back takes.
_QUICK_BYTES = 512 * 1024
_NOT_SHOWN = "is not shown to compiles; the operator can show it with SANDBOX_READ"


@attrs.define(kw_only=True, eq=False)
class RequestHandler:
    """One request and its response; ``record`` is filled in on the way.

    The memory of the response is held until ``held`` is closed.
    """

    _service: CompileService
    _client: str
    # Signs the response.
    _identity: Identity
    record: RequestRecord
    # Whether a smaller response is worth the work.
    _deflate: bool
    _held: contextlib.AsyncExitStack
    _log: Log
    _answered: anyio.Event = attrs.field(init=False, factory=anyio.Event)
    _entry: CacheEntry | None = attrs.field(init=False, default=None)

    async def handle(self, received: bytes | StapsrvError) -> EncodedResponse:
        """Return the zip of stap's response, or of this server's own where stap made none.

        ``received`` is the request's zip, or why it could not be received.
        """
        counts = self._service.counts
        try:
            return await self._compile(await self._parse(received))
        except (ProtocolError, RequestRejected, TranslatorError) as exc:
            reason = exc
            self._service.rejections.count(
                exc.reject_reason, lambda: self._log.warning("request.rejected", reason=reason)
            )
            return encode_response(self._reject(exc))
        except Exception:  # noqa: BLE001 - the one net below a request: its client still gets a response
            self._log.exception("request.crashed")
            fault = TranslatorError("The server failed on this request; its log says why")
            return encode_response(self._reject(fault))
        finally:
            if self.record.outcome is Outcome.ANSWERED:
                counts.done += 1
            else:
                counts.failed += 1

    async def finish(self) -> None:
        """After the response was sent: wait until the result is stored or not, and put that on record."""
        self._answered.set()
        if self._entry is not None:
            self.record.enter(Stage.STORE)
            await self._entry.stored.wait()
            self.record.uncacheable = self._entry.reason

    def reject_stopping(self) -> CompileResponse:
        """Return the response to a request that is broken off because the server stops."""
        return self._reject(
            TranslatorError("The compile was ended: the server is stopping", remedy="try again later")
        )

    async def _parse(self, received: bytes | StapsrvError) -> CompileRequest:
        if isinstance(received, StapsrvError):
            raise received
        parse = functools.partial(parse_request, max_request_bytes=self._service.settings.max_request_bytes)
        request = await anyio.to_thread.run_sync(parse, received)
        self.record.release = request.release
        self.record.options = digest(request.arguments).hex()[:_DIGEST_CHARACTERS]
        self._log.info("request.version", version=request.version)
        self._log.info("request.options", options=render_arguments(request.arguments))
        return request

    async def _compile(self, request: CompileRequest) -> EncodedResponse:
        release = self._served_release(request)
        job = CompileJob(
            request=request,
            release=release,
            table=await self._service.options.table_for(request.arguments),
            settings=self._service.settings,
            client=self._client,
            record=self.record,
            answered=self._answered,
            log=self._log,
        )
        refuse_signing_options(job.options)
        entry = self._entry = await self._held.enter_async_context(self._service.engine.answer(job))
        self.record.uncacheable = entry.reason
        self.record.rc = entry.result.status
        self._note_health(job, entry.result)
        with timed(self.record, Stage.SIGN):
            response = await self._sign(job, entry)
        self.record.rc = response.rc
        encoded = await self._encode(response)
        self.record.outcome = Outcome.ANSWERED
        return encoded

    async def _encode(self, response: CompileResponse) -> EncodedResponse:
        if not self._deflate and response.size <= _QUICK_BYTES:
            return encode_response(response, deflate=False)
        encode = functools.partial(encode_response, response, deflate=self._deflate)
        return await anyio.to_thread.run_sync(encode)

    def _served_release(self, request: CompileRequest) -> ServedRelease:
        releases = self._service.releases
        release = releases.get(request.release)
        if release is not None and normalise_arch(request.arch) == release.arch:
            return release
        self._log.warning("request.unserved", release=request.release)
        served = ", ".join(known.sysinfo for known in releases.values())
        raise RequestRejected(
            f"Target kernel version {request.release} {request.arch} is not supported by this server, "
            f"which serves {served or 'none now'}"
        )

    def _note_health(self, job: CompileJob, result: CompileResult) -> None:
        health = self._service.release_health.get(job.release.name)
        is_compiled = self.record.source is not Source.HIT
        if health is not None and is_compiled and result.status == 0 and has_modules(result.files):
            health.set(Health.HEALTHY)

    async def _sign(self, job: CompileJob, entry: CacheEntry) -> CompileResponse:
        request, result = job.request, entry.result
        messages = list(request.messages)
        if result.limit_met is not None:
            self._log.warning("request.limited", reason=result.limit_met)
            messages.append(f"Server: {result.limit_met}")
        for path in map(printable, result.hidden_paths):
            self._log.warning("request.hidden", path=path)
            messages.append(f"Server: {path} {_NOT_SHOWN}")
        own = "".join(f"{message}\n" for message in messages).encode()
        response = CompileResponse(
            version=self._service.version,
            rc=result.status,
            stdout=entry.stdout,
            stderr=attrs.evolve(entry.stderr, before=own),
            files=without_signatures(result.files),
        )
        if result.status != 0 or not has_modules(response.files):
            return response
        # Last comes what covers the module as it is loaded.
        is_certified = job.privilege in SIGNED_PRIVILEGES
        if job.privilege is None:
            self._log.warning("request.unsigned")
        if not request.fingerprints and not request.mok_missing:
            return attrs.evolve(response, files=await self._certify(entry)) if is_certified else response
        signed = await self._service.kernel_signer.sign(response.files, job)
        self._log.info("mok.signed" if signed.trusted else "mok.offered", fingerprint=signed.key)
        files = await add_signatures(signed.files, self._identity.sign) if is_certified else signed.files
        stderr = attrs.evolve(response.stderr, after=signed.message)
        return attrs.evolve(response, rc=response.rc if signed.trusted else 1, stderr=stderr, files=files)

    async def _certify(self, entry: CacheEntry) -> tuple[ResponseFile, ...]:
        if entry.signed is not None and entry.signed[0] is self._identity:
            return entry.signed[1]
        files = await add_signatures(without_signatures(entry.result.files), self._identity.sign)
        entry.signed = self._identity, files
        return files

    def _reject(self, exc: StapsrvError) -> CompileResponse:
        text = exc.problem if exc.remedy is None else f"{exc.problem}; {exc.remedy}"
        self.record.outcome = Outcome.REFUSED
        self.record.refusal = exc.problem
        self.record.rejection = exc.reject_reason
        self.record.rc = 1
        said = ResponseFile("stderr", f"Server: {text}\n".encode())
        return CompileResponse(version=self._service.version, rc=1, stderr=said)
