"""One connection from accept to close: the story of a request, readable top to bottom.

accept -> handshake -> frame -> zip -> release served? -> queue -> worker: stap, sign -> answer -> close.
Every step that waits has a deadline of its own. A worker is taken only once the request has arrived
whole, and a client that goes away takes its compile with it.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime
from typing import Protocol

import anyio
import anyio.to_thread
import attrs
from anyio.abc import SocketStream
from anyio.streams.tls import TLSStream
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.engine import CompileJob, CompileResult, Engine
from stapsrv.compile.modules import (
    SIGNED_PRIVILEGES,
    KernelSigner,
    add_signatures,
    has_modules,
    refuse_signing_options,
    without_signatures,
)
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.wire import (
    CompileRequest,
    CompileResponse,
    FrameReader,
    encode_response,
    parse_request,
    render_arguments,
)
from stapsrv.config.kernels import ServedRelease, normalise_arch
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ProtocolError, RequestRejected, StapsrvError, TranslatorError

_READ_BYTES = 65536
_DISCARD_BYTES = 16 * 1024 * 1024
"""Of a frame that is too large: what is read and dropped so that the client can read its answer."""
_GOODBYE_S = 2.0
"""How long a client may take to acknowledge the end of the connection."""

_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError, ssl.SSLError)


@attrs.define
class RequestCounts:
    """What became of the requests of one server so far."""

    accepted: int = 0
    done: int = 0
    failed: int = 0


class ServedIdentity(Protocol):
    """Who a server is, as far as its connections and its status need to know."""

    @property
    def context(self) -> ssl.SSLContext:
        """What handshakes are made with."""

    @property
    def not_after(self) -> datetime:
        """The end of the certificate's validity."""

    def sign(self, module: bytes) -> bytes:
        """Return the signature of a module by the certificate's key; takes some milliseconds."""


@attrs.frozen(kw_only=True)
class CompileService:
    """What the sessions of one server share.

    Attributes:
        settings: the server's options and limits.
        releases: what it compiles for, by name.
        version: the protocol version in answers: that of the installed stap.
        engine: where compiles run.
        pool: who may run one.
        identity: returns who the server is now; a renewed certificate is shown from the next handshake on.
        kernel_signer: signs modules for kernels under secure boot.
        log: the server's own.
        counts: kept by the sessions.
    """

    settings: ServerSettings
    releases: Mapping[str, ServedRelease]
    version: str
    engine: Engine
    pool: WorkerPool
    identity: Callable[[], ServedIdentity]
    kernel_signer: KernelSigner
    log: Log
    counts: RequestCounts = attrs.field(factory=RequestCounts)


class Session:
    """One accepted connection.

    Args:
        service: the server that it came to.
        peer: its address and port, for the log.
        client: what fairness goes by: the same for all connections of one client.
    """

    def __init__(self, service: CompileService, *, peer: object, client: str) -> None:
        self._service = service
        self._limits = service.settings.limits
        self._peer = peer
        self._client = client
        self._log = service.log.bind(peer=peer)
        # Taken once: what this peer is sent is signed by the certificate that it was shown.
        self._identity = service.identity()
        self._arriving = anyio.CancelScope()
        self.outstanding = False
        """Whether a whole request has arrived and its answer is not sent yet."""

    def give_up_arrival(self) -> None:
        """End the connection unless its request has arrived whole; then let it finish."""
        self._arriving.cancel()

    async def run(self, connection: socket.socket) -> None:
        """Serve ``connection``, which is accepted and non-blocking, and close it.

        Only cancellation leaves; whatever else goes wrong is logged and ends this connection alone.
        """
        self._log.info("connection.accepted")
        try:
            async with await _adopt(connection) as stream:
                await self._converse(stream)
        except TimeoutError as exc:
            self._log.info("connection.failed", reason=str(exc))
        except ProtocolError as exc:
            self._log.info("connection.failed", reason=exc)
        except _BROKEN as exc:
            self._log.info("connection.failed", reason=_describe(exc))
        except Exception:  # noqa: BLE001 - the one net below a connection; its neighbours never notice
            self._log.exception("connection.crashed")

    async def _converse(self, stream: SocketStream) -> None:
        with self._arriving:
            tls = await self._handshake(stream)
            received = await self._receive(tls)
            self.outstanding = received is not None
        if self._arriving.cancelled_caught or received is None:
            return
        try:
            answer = await self._answer(tls, received)
            if answer is None:
                self._log.info("request.abandoned")
                return
            with _deadline(self._limits.send_s, "the client did not take its answer"):
                await tls.send(answer)
            self._log.info("request.complete")
        finally:
            self.outstanding = False
        await _say_goodbye(tls)

    async def _handshake(self, stream: SocketStream) -> TLSStream:
        with _deadline(self._limits.handshake_s, "no TLS handshake"):
            return await TLSStream.wrap(
                stream,
                server_side=True,
                ssl_context=self._identity.context,
                standard_compatible=False,
            )

    async def _receive(self, tls: TLSStream) -> bytes | StapsrvError | None:
        """Return the request's zip, why it cannot be taken, or None when the peer wants nothing."""
        frame = FrameReader(self._service.settings.max_compressed_bytes)
        with _deadline(self._limits.request_s, "the request did not arrive whole"):
            while (payload := frame.payload) is None:
                try:
                    data = await tls.receive(_READ_BYTES)
                except anyio.EndOfStream:
                    frame.feed_eof()
                    return None
                try:
                    frame.feed(data)
                except ProtocolError as exc:
                    await _discard(tls, frame.missing_bytes)
                    return exc
        return payload or None

    async def _answer(self, tls: TLSStream, received: bytes | StapsrvError) -> bytes | None:
        """Return the bytes to send, or None when the peer did not wait for them."""
        answer = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch_departure, tls, tasks.cancel_scope)
            response = await self._respond(received)
            answer = await anyio.to_thread.run_sync(encode_response, response)
            tasks.cancel_scope.cancel()
        return answer

    async def _respond(self, received: bytes | StapsrvError) -> CompileResponse:
        """Return stap's answer, or this server's own when it comes to no answer of stap's."""
        counts = self._service.counts
        counts.accepted += 1
        try:
            response = await self._compile(await self._parse(received))
        except (ProtocolError, RequestRejected, TranslatorError) as exc:
            counts.failed += 1
            self._log.warning("request.rejected", reason=exc)
            return self._refusal(exc)
        except BaseException:
            counts.failed += 1
            raise
        counts.done += 1
        return response

    async def _parse(self, received: bytes | StapsrvError) -> CompileRequest:
        if isinstance(received, StapsrvError):
            raise received
        parse = functools.partial(parse_request, max_request_bytes=self._service.settings.max_request_bytes)
        request = await anyio.to_thread.run_sync(parse, received)
        self._log.info("request.version", version=request.version)
        self._log.info("request.options", options=render_arguments(request.arguments))
        return request

    async def _compile(self, request: CompileRequest) -> CompileResponse:
        service = self._service
        release = service.releases.get(request.release)
        if release is None or normalise_arch(request.arch) != release.arch:
            self._log.warning("request.unserved", release=request.release)
            served = ", ".join(known.sysinfo for known in service.releases.values())
            raise RequestRejected(
                f"Target kernel version {request.release} {request.arch} is not supported by this server, "
                f"which serves {served}"
            )
        refuse_signing_options(request.arguments)
        job = CompileJob(request=request, release=release, settings=service.settings)
        async with self._worker():
            result = await service.engine.run(job, deadline_s=self._limits.compile_s)
            return await self._sign(job, result)

    async def _sign(self, job: CompileJob, result: CompileResult) -> CompileResponse:
        """Return the answer that ``result`` makes, with the signatures that its modules need."""
        request = job.request
        own = "".join(f"{message}\n" for message in request.messages).encode()
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
            with _deadline(self._limits.queue_s, None) as scope:
                await held.enter_async_context(pool.worker(self._client))
            if scope.cancelled_caught:
                raise RequestRejected(
                    f"The server is busy: no worker was free within {self._limits.queue_s:g} seconds",
                    remedy="try again later",
                )
            running = pool.statistics().running
            if running > 1:
                self._log.info("request.many", running=running)
            else:
                self._log.info("request.one")
            yield

    def _refusal(self, exc: StapsrvError) -> CompileResponse:
        text = exc.problem if exc.remedy is None else f"{exc.problem}; {exc.remedy}"
        return CompileResponse(version=self._service.version, rc=1, stderr=f"Server: {text}\n".encode())


@contextlib.contextmanager
def _deadline(seconds: float, missed: str | None) -> Iterator[anyio.CancelScope]:
    """Bound a wait; when it is missed raise TimeoutError with a text, or leave it to the caller."""
    with anyio.move_on_after(seconds) as scope:
        yield scope
    if scope.cancelled_caught and missed is not None:
        raise TimeoutError(f"{missed} within {seconds:g} seconds")


async def _adopt(connection: socket.socket) -> SocketStream:
    try:
        return await SocketStream.from_socket(connection)
    except BaseException:
        connection.close()
        raise


async def _watch_departure(tls: TLSStream, waiting: anyio.CancelScope) -> None:
    """Cancel ``waiting`` when the peer closes, or breaks the protocol by saying more."""
    with contextlib.suppress(*_BROKEN):
        await tls.receive(1)
    waiting.cancel()


async def _discard(tls: TLSStream, announced: int) -> None:
    """Read what the peer still sends: closing on unread data would reset the answer away from it."""
    left = min(announced, _DISCARD_BYTES)
    with contextlib.suppress(*_BROKEN), anyio.move_on_after(_GOODBYE_S):
        while left > 0:
            left -= len(await tls.receive(_READ_BYTES))


async def _say_goodbye(tls: TLSStream) -> None:
    """Tell the peer that the answer is complete, and let it read that before the socket closes."""
    with contextlib.suppress(*_BROKEN), anyio.move_on_after(_GOODBYE_S):
        await tls.unwrap()


def _describe(exc: BaseException) -> str:
    if isinstance(exc, anyio.EndOfStream):
        return "the client closed the connection"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {exc.reason or exc.strerror or exc}"
    return str(exc) or "the connection broke"
