"""One TLS connection with a client, bounded in what it may send without sending data.

Each record costs work and brings nothing until data comes of it: pieces of a handshake, key updates,
renegotiations that are refused, alerts, padding. OpenSSL handles them in one call, however many there are, so
they are counted below it. Real clients send fewer than ten.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.lowlevel
import attrs
from anyio.abc import ByteStream, SocketStream
from anyio.streams.tls import TLSStream

from stapsrv.compile.protocol.response import EncodedResponse
from stapsrv.errors import ProtocolError
from stapsrv.rejection import RejectReason

READ_BYTES = 65536
BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError, ssl.SSLError)

_MAX_RECORDS = 64
_MAX_BYTES = 65536
# What a record with data may have beside it: its header, its tag, a block cipher's padding (RFC 8446, 5.2).
_RECORD_OVERHEAD_BYTES = 256
_HEADER_BYTES = 5
# Given to OpenSSL at once; six hundred of the shortest records.
_CHUNK_BYTES = 16384
# Encrypted at once: all that sending costs in memory beside the answer itself.
_BLOCK_BYTES = 65536
# For the peer to acknowledge the end of the connection.
_CLOSE_S = 2.0


@attrs.define(eq=False)
class TlsConnection:
    """The server's end of a connection; where the peer breaks it, one of BROKEN is raised."""

    _tls: TLSStream
    _wire: _Wire

    @classmethod
    async def accept(cls, stream: SocketStream, context: ssl.SSLContext) -> TlsConnection:
        """Shake hands with the peer of ``stream``, which the caller closes.

        Raises:
            ProtocolError: the peer sends too many records for that.
        """
        wire = _Wire(stream)
        tls = await TLSStream.wrap(wire, server_side=True, ssl_context=context, standard_compatible=False)
        return cls(tls, wire)

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        """Return data that has come.

        Raises:
            ProtocolError: too many records came without any.
        """
        data = await self._tls.receive(max_bytes)
        self._wire.note_data(len(data))
        return data

    async def send(self, response: EncodedResponse) -> None:
        """Send a response; cancellation: a part of it may have been sent."""
        for block in response.blocks(_BLOCK_BYTES):
            await self._tls.send(block)

    async def close(self) -> None:
        """End the connection in a way that the peer can tell from one that breaks, within two seconds."""
        with anyio.move_on_after(_CLOSE_S), contextlib.suppress(ProtocolError, *BROKEN):
            await self._tls.unwrap()
        await anyio.aclose_forcefully(self._wire)


class _Wire(ByteStream):
    """The stream below TLS: counts what comes, and refuses more where too little data came of it."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._header = bytearray()
        self._record_left = 0
        # Of records, less those that data came of; of bytes, less those of data.
        self._records = 0
        self._bytes = 0

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes

    def note_data(self, size: int) -> None:
        """Count ``size`` bytes of data, which came of one record."""
        self._records -= 1
        self._bytes -= size + _RECORD_OVERHEAD_BYTES

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        # All that has come so far has been handled: only then is more asked for.
        if self._records > _MAX_RECORDS or self._bytes > _MAX_BYTES:
            raise ProtocolError(
                "the client sends TLS records without data", reject_reason=RejectReason.TLS_RECORDS
            )
        # The stream's own need not be a checkpoint while more keeps coming.
        await anyio.lowlevel.checkpoint()
        data = await self._stream.receive(min(max_bytes, _CHUNK_BYTES))
        self._count(data)
        return data

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _count(self, data: bytes) -> None:
        self._bytes += len(data)
        at = 0
        while at < len(data):
            if self._record_left:
                step = min(self._record_left, len(data) - at)
                self._record_left -= step
            else:
                step = min(_HEADER_BYTES - len(self._header), len(data) - at)
                self._header += data[at : at + step]
                if len(self._header) == _HEADER_BYTES:
                    self._records += 1
                    self._record_left = int.from_bytes(self._header[3:], "big")
                    self._header.clear()
            at += step
