"""One connection from accept to close.

accept -> handshake -> frame -> request becomes response (:mod:`stapsrv.compile.handler`) -> send -> close.
Every step that waits for the peer has a deadline of its own. A worker is taken only once the request has
arrived whole, and a client that goes away takes its compile with it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import anyio
import anyio.to_thread
from anyio.abc import SocketStream

from stapsrv.compile.context import CompileService
from stapsrv.compile.handler import RequestHandler
from stapsrv.compile.protocol.frames import FrameReader
from stapsrv.compile.protocol.response import EncodedResponse, encode_response
from stapsrv.compile.stats import ConnectionOutcome, Outcome, RequestRecord, Stage, summary
from stapsrv.compile.tls import BROKEN, TlsConnection
from stapsrv.errors import ProtocolError, RequestRejected, StapsrvError
from stapsrv.rejection import RejectReason
from stapsrv.system.streams import adopt

# Of a frame that is too large: read and dropped, so that the client can read its response.
_DISCARD_BYTES = 16 * 1024 * 1024
# For the client to send that, and then end its connection.
_DISCARD_S = 2.0
# For the result to be stored: the log says whether it was. On a busy host that takes seconds.
_STORE_S = 10.0
# For a client to read that its request was broken off, when the server stops.
_STOPPING_S = 1.0


class Session:
    """One accepted connection of a ``peer``; fairness counts it for ``client``, who may have several."""

    def __init__(self, service: CompileService, *, peer: object, client: str) -> None:
        self._service = service
        self._limits = service.settings.limits
        self._peer = str(peer)
        self._client = client
        self._log = service.log.bind(peer=peer)
        # The memory of the request and of its answer.
        self._held = contextlib.AsyncExitStack()
        self._arriving = anyio.CancelScope()
        self._working = anyio.CancelScope()
        self._is_sending = False
        self._outcome = ConnectionOutcome.ENDED
        # Whether a whole request has arrived and its answer is not sent yet.
        self.outstanding = False

    def give_up_arrival(self) -> None:
        """End the connection, unless its request has arrived whole."""
        self._arriving.cancel()

    def break_off(self) -> None:
        """End the request, and say so to its client, unless its answer is under way."""
        if not self._is_sending:
            self._working.cancel()

    async def run(self, connection: socket.socket) -> None:
        """Serve ``connection``, which is accepted and non-blocking, and close it.

        Raises nothing but cancellation: what goes wrong is logged, and ends this connection alone.
        """
        self._log.info("connection.accepted")
        try:
            # The last, short segment of an answer must not wait until the client has acknowledged the others.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with await adopt(connection) as stream, self._held:
                await self._serve(stream, connection)
        except ProtocolError as exc:
            self._fail(str(exc), exc.reject_reason)
        # TimeoutError: the peer's host is gone, as TCP has found out.
        except (TimeoutError, *BROKEN) as exc:
            self._fail(_describe(exc))
        except Exception:  # noqa: BLE001 - the one net below a connection; its neighbours never notice
            self._outcome = ConnectionOutcome.CRASHED
            self._log.exception("connection.crashed")
        finally:
            self._service.counters.connections[self._outcome] += 1

    def _fail(self, text: str, reason: RejectReason | None = None) -> None:
        self._service.rejections.count(reason, lambda: self._log.info("connection.failed", reason=text))
        if self._outcome is not ConnectionOutcome.REQUEST:
            self._outcome = ConnectionOutcome.FAILED

    async def _serve(self, stream: SocketStream, connection: socket.socket) -> None:
        with self._arriving:
            # Once: what this peer is sent is signed by the certificate that it was shown.
            identity = await self._service.identity.current()
            with _deadline(self._limits.handshake_s, "no TLS handshake", RejectReason.HANDSHAKE_TIMEOUT):
                tls = await TlsConnection.accept(stream, identity.context)
            received = await self._receive(tls, connection)
            self.outstanding = received is not None
        if self._arriving.cancelled_caught:
            return
        if received is None:
            self._outcome = ConnectionOutcome.EMPTY
            return
        self._outcome = ConnectionOutcome.REQUEST
        size = len(received) if isinstance(received, bytes) else 0
        record = RequestRecord(request_bytes=size)
        handler = RequestHandler(
            service=self._service,
            client=self._client,
            identity=identity,
            record=record,
            # To a client on this host nothing is gained by a smaller response.
            deflate=not _is_local(connection),
            held=self._held,
            log=self._log,
        )
        service = self._service
        try:
            with service.activity.follow(record, server=service.id, client=self._peer), self._working:
                await self._serve_request(tls, received, handler)
                await self._held.aclose()
                async with anyio.create_task_group() as closing:
                    closing.start_soon(tls.close)
                    with anyio.move_on_after(_STORE_S):
                        await handler.finish()
        finally:
            self._log.info("request.summary", **summary(record))
            self._service.latencies.add(record)
            self._service.counters.count_request(record, served=self._service.releases)

    async def _serve_request(
        self, tls: TlsConnection, received: bytes | StapsrvError, handler: RequestHandler
    ) -> None:
        answer: EncodedResponse | None = None
        is_taken = False
        try:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch_departure, tls, tasks.cancel_scope)
                    answer = await handler.handle(received)
                    tasks.cancel_scope.cancel()
            except anyio.get_cancelled_exc_class():
                is_taken = await self._send_stopping(tls, handler)
                raise
            if answer is None:
                self._log.info("request.abandoned")
                return
            self._is_sending = True
            handler.record.answer_bytes = answer.size
            missed = "the client did not take its answer"
            handler.record.enter(Stage.SEND)
            began = anyio.current_time()
            with _deadline(self._limits.send_s, missed, RejectReason.SEND_TIMEOUT):
                await tls.send(answer)
            handler.record.send_s = anyio.current_time() - began
            is_taken = True
            self._log.info("request.complete")
        finally:
            self.outstanding = False
            if not is_taken:
                handler.record.outcome = Outcome.ABANDONED

    async def _receive(self, tls: TlsConnection, connection: socket.socket) -> bytes | StapsrvError | None:
        """Return the request's zip, or why it cannot be received; None if the peer wants nothing."""
        frame = FrameReader(self._service.settings.max_compressed_bytes)
        missed = "the request did not arrive whole"
        with _deadline(self._limits.request_s, missed, RejectReason.REQUEST_TIMEOUT):
            while (payload := frame.payload) is None:
                _acknowledge_now(connection)
                try:
                    data = await tls.receive()
                except anyio.EndOfStream:
                    frame.feed_eof()
                    return None
                was_announced = frame.announced_bytes is not None
                try:
                    frame.feed(data)
                    if not was_announced and frame.announced_bytes is not None:
                        await self._hold_request(frame.announced_bytes)
                except (ProtocolError, RequestRejected) as exc:
                    await _discard(tls, frame.missing_bytes)
                    return exc
        return payload or None

    async def _hold_request(self, compressed: int) -> None:
        size = compressed + self._service.settings.max_request_bytes
        # Not all of the time that the client has, so that it can still be told.
        wait_s = self._limits.request_s / 2
        self._held.callback(await self._service.request_memory.claim(self._client, size, wait_s=wait_s))

    async def _watch_departure(self, tls: TlsConnection, waiting: anyio.CancelScope) -> None:
        """Cancel ``waiting`` when the peer closes, or breaks the protocol by sending more."""
        try:
            with contextlib.suppress(*BROKEN):
                await tls.receive(1)
        except ProtocolError as exc:
            self._fail(str(exc), exc.reject_reason)
        waiting.cancel()

    async def _send_stopping(self, tls: TlsConnection, handler: RequestHandler) -> bool:
        """Respond to a client whose request is broken off; return whether it was still there."""
        is_sent = False
        with anyio.move_on_after(_STOPPING_S, shield=True), contextlib.suppress(*BROKEN):
            await tls.send(encode_response(handler.reject_stopping()))
            self._log.info("request.interrupted")
            is_sent = True
            await tls.close()
        return is_sent


@contextlib.contextmanager
def _deadline(seconds: float, missed: str, reason: RejectReason) -> Iterator[None]:
    """Raise a ProtocolError, with a text that begins with ``missed``, where the block takes longer."""
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise ProtocolError(f"{missed} within {seconds:g} seconds", reject_reason=reason)


def _is_local(connection: socket.socket) -> bool:
    """Whether the peer is on this host, which then is at both ends under one address."""
    try:
        here, there = connection.getsockname(), connection.getpeername()
    except OSError:
        # The peer has reset the connection.
        return False
    return bool(here[0] == there[0])


def _acknowledge_now(connection: socket.socket) -> None:
    """Acknowledge the peer's last segment, and each one until something is sent to it, without delay."""
    # The real client sends the end of the handshake, the length and the request one by one, and its kernel
    # holds each back until the one before is acknowledged (Nagle), which ours would put off for 40 ms.
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


async def _discard(tls: TlsConnection, announced: int) -> None:
    # To close on unread data would reset the connection, and take the response from the peer.
    left = min(announced, _DISCARD_BYTES)
    with contextlib.suppress(*BROKEN), anyio.move_on_after(_DISCARD_S):
        while left > 0:
            left -= len(await tls.receive())


def _describe(exc: BaseException) -> str:
    if isinstance(exc, anyio.EndOfStream):
        return "the client closed the connection"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {exc.reason or exc.strerror or exc}"
    return str(exc) or "the connection broke"
