"""One request to one server, as steps that somebody else performs; it does no I/O itself.

An exchange is a generator: it yields what to do next and is sent what came of it, or gets the OSError thrown
in. :mod:`stapsrv.client.blocking` performs the steps with sockets, :mod:`stapsrv.client.waiting` with anyio.

The server is judged by its certificate alone, as soon as the handshake has shown that it has the key; until
then nothing is sent. A reset before that is the protocol's way to say "busy": five tries, a second apart, as
the real client makes. An expired certificate gets one more try after two seconds, for a server that is about
to renew it. Source: PROTOCOL, the connection.
"""

from __future__ import annotations

import enum
import ssl
import struct
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from typing import TypeAlias

import attrs
from cryptography import x509

from stapsrv.client.address import Address
from stapsrv.client.errors import ServerNotTrusted, ServerUnavailable
from stapsrv.client.trust import Trust, fingerprint_of, load_certificate
from stapsrv.errors import ProtocolError

CONNECT_S = 10.0
"""For finding, connecting and shaking hands, each."""
ANSWER_S = 900.0
"""From the request to the end of the response, by default: queueing, compiling, sending."""
TRIES = 5
RETRY_S = 1.0
RENEWAL_S = 2.0
MAX_RESPONSE_BYTES = 256 * 1024 * 1024
"""Of the zip; real ones have less than a megabyte."""

_LENGTH = struct.Struct(">I")
_READ_BYTES = 64 * 1024


class Stage(enum.StrEnum):
    """The progress of a request."""

    CONNECTING = "connecting"
    BUSY = "the server is busy"
    SENDING = "sending"
    COMPILING = "compiling"
    RECEIVING = "receiving"
    DONE = "done"


OnStage: TypeAlias = Callable[[Stage], None]


@attrs.frozen
class Connect:
    """Connect to a server, and forget any connection before."""

    address: Address


@attrs.frozen
class Send:
    """Send bytes, all of them."""

    data: bytes = attrs.field(repr=False)


@attrs.frozen
class Receive:
    """Receive some bytes; none at the end."""


@attrs.frozen
class Close:
    """Close the connection."""


@attrs.frozen
class Sleep:
    """Wait for all of the step's time."""


@attrs.frozen
class Step:
    """Something to do within so many seconds; if it takes longer, that is a TimeoutError."""

    action: Connect | Send | Receive | Close | Sleep
    timeout_s: float


Exchange: TypeAlias = Generator[Step, bytes, bytes]


def exchange(
    address: Address,
    request: bytes,
    trust: Trust,
    *,
    timeout_s: float = ANSWER_S,
    on_stage: OnStage | None = None,
) -> Exchange:
    """Send a request to a server and return the zip that it answers with.

    Args:
        address: the server's.
        request: its zip.
        trust: what decides whether a certificate is that server's.
        timeout_s: for all of it once the handshake is done.
        on_stage: is called with each stage, in the caller's task.

    Raises:
        ServerUnavailable: it could not be reached, was busy at each try, or cut the connection.
        ServerNotTrusted: its certificate is another one, or not valid now; nothing of the request was sent.
        ProtocolError: the answer is too long.
    """
    tell = on_stage or _ignore
    may_renew = True
    tries = 0
    while True:
        connection = _Connection(address)
        tell(Stage.CONNECTING)
        try:
            certificate = yield from connection.open()
            _check_dates(certificate, address)
        except _Reset as exc:
            tries += 1
            if tries == TRIES:
                raise ServerUnavailable(f"{address} is busy: it reset {tries} connections") from exc
            tell(Stage.BUSY)
            yield from _pause(RETRY_S)
        except _Expired as exc:
            yield from connection.leave()
            if not may_renew:
                raise ServerNotTrusted(str(exc), remedy="have it renewed: restart that server") from exc
            may_renew = False
            yield from _pause(RENEWAL_S)
        else:
            break
    try:
        trust.check(address, certificate)
    except ServerNotTrusted:
        yield from connection.leave()
        raise
    return (yield from connection.ask(request, timeout_s, tell))


class _Reset(Exception):
    """The connection was reset before the end of the handshake."""


class _Expired(Exception):
    """The certificate's time is over; says which."""


class _Connection:
    """A TLS session over steps."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._is_ended = False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Servers sign their certificates themselves: which one it is decides, see trust.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._tls = context.wrap_bio(self._incoming, self._outgoing)

    def open(self) -> Generator[Step, bytes, x509.Certificate]:
        """Connect and shake hands; return the server's certificate."""
        try:
            yield Step(Connect(self._address), CONNECT_S)
            deadline = time.monotonic() + CONNECT_S
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    yield from self._transfer(deadline)
            yield from self._flush(deadline)
        except (ConnectionResetError, BrokenPipeError) as exc:
            raise _Reset from exc
        except ssl.SSLError as exc:
            reason = "the connection was closed" if self._is_ended else exc.reason or exc
            raise self._unavailable(f"the TLS handshake failed ({reason})") from exc
        except TimeoutError as exc:
            raise self._unavailable(f"no answer within {CONNECT_S:g} s") from exc
        except OSError as exc:
            raise self._unavailable(exc.strerror or str(exc)) from exc
        shown = self._tls.getpeercert(binary_form=True)
        if shown is None:
            raise ServerNotTrusted(f"{self._address} shows no certificate")
        return load_certificate(shown, str(self._address))

    def leave(self) -> Generator[Step, bytes, None]:
        """Say that only the certificate was wanted, and close."""
        try:
            self._tls.write(_LENGTH.pack(0))
            yield from self._flush(time.monotonic() + CONNECT_S)
        except OSError:
            pass
        yield Step(Close(), CONNECT_S)

    def ask(self, request: bytes, timeout_s: float, tell: OnStage) -> Generator[Step, bytes, bytes]:
        """Send a request, and return all that follows."""
        deadline = time.monotonic() + timeout_s
        answer = bytearray()
        try:
            tell(Stage.SENDING)
            self._tls.write(_LENGTH.pack(len(request)) + request)
            yield from self._flush(deadline)
            tell(Stage.COMPILING)
            while block := (yield from self._read(deadline)):
                if not answer:
                    tell(Stage.RECEIVING)
                answer += block
                if len(answer) > MAX_RESPONSE_BYTES:
                    raise ProtocolError(
                        f"{self._address}: the response has more than {MAX_RESPONSE_BYTES >> 20} MiB"
                    )
        except TimeoutError as exc:
            raise self._unavailable(f"no response within {timeout_s:g} s", remedy="allow more time") from exc
        except OSError as exc:
            raise self._unavailable(f"the connection was cut ({exc.strerror or exc})") from exc
        yield Step(Close(), CONNECT_S)
        if not answer:
            raise self._unavailable("it closed the connection without a response")
        tell(Stage.DONE)
        return bytes(answer)

    def _read(self, deadline: float) -> Generator[Step, bytes, bytes]:
        while True:
            try:
                return self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                yield from self._transfer(deadline)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError:
                # Servers may leave without a close_notify; what is missing shows in the zip.
                if self._is_ended:
                    return b""
                raise

    def _transfer(self, deadline: float) -> Generator[Step, bytes, None]:
        yield from self._flush(deadline)
        data = yield Step(Receive(), _left_s(deadline))
        if data:
            self._incoming.write(data)
        else:
            self._is_ended = True
            self._incoming.write_eof()

    def _flush(self, deadline: float) -> Generator[Step, bytes, None]:
        if data := self._outgoing.read():
            yield Step(Send(data), _left_s(deadline))

    def _unavailable(self, problem: str, *, remedy: str | None = None) -> ServerUnavailable:
        return ServerUnavailable(problem, where=str(self._address), remedy=remedy)


def _check_dates(certificate: x509.Certificate, address: Address) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise _Expired(
            f"{address}: the certificate {fingerprint_of(certificate)} expired on "
            f"{certificate.not_valid_after_utc:%F}"
        )
    if now < certificate.not_valid_before_utc:
        raise ServerNotTrusted(
            f"{address}: the certificate {fingerprint_of(certificate)} is not valid before "
            f"{certificate.not_valid_before_utc:%F %R} UTC",
            remedy="compare the clocks of both hosts",
        )


def _pause(seconds: float) -> Generator[Step, bytes, None]:
    yield Step(Sleep(), seconds)


def _left_s(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _ignore(_stage: Stage) -> None:
    pass
