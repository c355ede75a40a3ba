"""Bounded waits: what depends on a peer, or on others' work, ends in time.

One connection from accept to close: the story of a request, readable top to bottom.

accept -> handshake -> frame -> request becomes answer (:mod:`stapsrv.compile.handler`) -> send -> close.
Every step that waits has a deadline of its own. A worker is taken only once the request has arrived
whole, and a client that goes away takes its compile with it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import anyio
import anyio.to_thread
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from stapsrv.compile.context import CompileService, ServedIdentity
from stapsrv.compile.handler import RequestHandler
from stapsrv.compile.protocol.frames import FrameReader
from stapsrv.compile.protocol.response import encode_response
from stapsrv.compile.stats import ConnectionOutcome, Outcome, RequestRecord, summary
from stapsrv.errors import ProtocolError, StapsrvError
from stapsrv.rejection import RejectReason


class PeerTimeout(TimeoutError):
    """A peer did not do its part in time.

    Attributes:
        refusal: the deadline that it missed.
    """

    def __init__(self, text: str, refusal: RejectReason) -> None:
        super().__init__(text)
        self.refusal = refusal


@contextlib.contextmanager
def deadline(seconds: float, missed: str, refusal: RejectReason) -> Iterator[None]:
    """Bound a wait.

    Raises:
        Overdue: it took longer; the text says that ``missed`` was so within these seconds.
    """
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise PeerTimeout(f"{missed} within {seconds:g} seconds", refusal)


_READ_BYTES = 65536
_DISCARD_BYTES = 16 * 1024 * 1024
"""Of a frame that is too large: what is read and dropped so that the client can read its answer."""
_GOODBYE_S = 2.0
"""How long a client may take to acknowledge the end of the connection, and its result to be kept."""

_APOLOGY_S = 1.0
"""How long the end of a server waits for a client to take the answer that there will be none."""

_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError, ssl.SSLError)


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
        self._arriving = anyio.CancelScope()
        self._outcome = ConnectionOutcome.ENDED
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
        except (PeerTimeout, ProtocolError) as exc:
            # As text: the name is unbound when the block ends.
            self._fail(str(exc), exc.refusal)
        except TimeoutError as exc:
            # The peer's host is gone, as TCP has found out.
            self._fail(str(exc))
        except _BROKEN as exc:
            self._fail(_describe(exc))
        except Exception:  # noqa: BLE001 - the one net below a connection; its neighbours never notice
            self._outcome = ConnectionOutcome.CRASHED
            self._log.exception("connection.crashed")
        finally:
            self._service.counters.connections[self._outcome] += 1

    def _fail(self, reason: str, refusal: RejectReason | None = None) -> None:
        self._service.rejections.count(refusal, lambda: self._log.info("connection.failed", reason=reason))
        if self._outcome is not ConnectionOutcome.REQUEST:
            self._outcome = ConnectionOutcome.FAILED

    async def _converse(self, stream: SocketStream) -> None:
        with self._arriving:
            # Taken once: what this peer is sent is signed by the certificate that it was shown.
            identity = await self._service.identity.current()
            tls = await self._handshake(stream, identity)
            received = await self._receive(tls)
            self.outstanding = received is not None
        if self._arriving.cancelled_caught:
            return
        if received is None:
            self._outcome = ConnectionOutcome.EMPTY
            return
        self._outcome = ConnectionOutcome.REQUEST
        record = RequestRecord(peer=str(self._peer), request_bytes=_size(received))
        handler = RequestHandler(
            self._service, client=self._client, identity=identity, record=record, log=self._log
        )
        try:
            await self._serve(tls, received, handler, record)
            with anyio.move_on_after(_GOODBYE_S):
                async with anyio.create_task_group() as endings:
                    endings.start_soon(_say_goodbye, tls)
                    endings.start_soon(handler.finish)
        finally:
            self._log.info("request.summary", **summary(record))
            self._service.latencies.add(record)
            self._service.counters.count_request(record, served=self._service.releases)

    async def _serve(
        self, tls: TLSStream, received: bytes | StapsrvError, handler: RequestHandler, record: RequestRecord
    ) -> None:
        """Answer a request that has arrived whole."""
        taken = False
        try:
            try:
                answer = await self._answer(tls, received, handler)
            except anyio.get_cancelled_exc_class():
                taken = await self._tell_stopping(tls, handler)
                raise
            if answer is None:
                self._log.info("request.abandoned")
                return
            record.answer_bytes = len(answer)
            began = anyio.current_time()
            with deadline(
                self._limits.send_s, "the client did not take its answer", RejectReason.SEND_TIMEOUT
            ):
                await tls.send(answer)
            record.send_s = anyio.current_time() - began
            taken = True
            self._log.info("request.complete")
        finally:
            self.outstanding = False
            if not taken:
                record.outcome = Outcome.ABANDONED

    async def _handshake(self, stream: SocketStream, identity: ServedIdentity) -> TLSStream:
        with deadline(self._limits.handshake_s, "no TLS handshake", RejectReason.HANDSHAKE_TIMEOUT):
            return await TLSStream.wrap(
                stream,
                server_side=True,
                ssl_context=identity.context,
                standard_compatible=False,
            )

    async def _receive(self, tls: TLSStream) -> bytes | StapsrvError | None:
        """Return the request's zip, why it cannot be taken, or None when the peer wants nothing."""
        frame = FrameReader(self._service.settings.max_compressed_bytes)
        with deadline(
            self._limits.request_s, "the request did not arrive whole", RejectReason.REQUEST_TIMEOUT
        ):
            while (payload := frame.payload) is None:
                _acknowledge_at_once(tls)
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

    async def _answer(
        self, tls: TLSStream, received: bytes | StapsrvError, handler: RequestHandler
    ) -> bytes | None:
        """Return the bytes to send, or None when the peer did not wait for them."""
        answer = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch_departure, tls, tasks.cancel_scope)
            # To a client on this host nothing is gained by a smaller answer.
            answer = await handler.handle(received, deflate=not _is_local(tls))
            tasks.cancel_scope.cancel()
        return answer

    async def _tell_stopping(self, tls: TLSStream, handler: RequestHandler) -> bool:
        """Answer a client whose request is broken off; return whether it was still there to be told."""
        told = False
        with anyio.move_on_after(_APOLOGY_S, shield=True), contextlib.suppress(*_BROKEN):
            await tls.send(encode_response(handler.reject_stopping()))
            self._log.info("request.interrupted")
            told = True
            await tls.unwrap()
        return told


async def _adopt(connection: socket.socket) -> SocketStream:
    try:
        # The last, short segment of an answer must not wait until the client has acknowledged the others.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await SocketStream.from_socket(connection)
    except BaseException:
        connection.close()
        raise


def _is_local(stream: TLSStream) -> bool:
    """Whether the peer is on this host, which then is at both ends under one address."""
    ends = (SocketAttribute.local_address, SocketAttribute.remote_address)
    # One that has reset its connection has no address any more.
    here, there = (stream.extra(end, None) for end in ends)  # noqa: S610 - AnyIO's extra, not Django's
    return here is not None and there is not None and here[0] == there[0]


def _acknowledge_at_once(stream: TLSStream) -> None:
    """Tell the peer now that its last segment has arrived, and of each one until something is sent to it.

    The real client sends the end of the handshake, the length and the request one by one, and its kernel
    holds each back until the one before is acknowledged (Nagle), which ours would put off for 40 ms.
    """
    with contextlib.suppress(OSError):
        raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - AnyIO's extra, not Django's
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


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
    with contextlib.suppress(*_BROKEN):
        await tls.unwrap()


def _size(received: bytes | StapsrvError) -> int:
    return len(received) if isinstance(received, bytes) else 0


def _describe(exc: BaseException) -> str:
    if isinstance(exc, anyio.EndOfStream):
        return "the client closed the connection"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {exc.reason or exc.strerror or exc}"
    return str(exc) or "the connection broke"
