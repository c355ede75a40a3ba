"""The frame around a request: a 4-byte big-endian length, that many bytes, then nothing.

A :class:`FrameReader` is fed with what arrives; a peer that breaks the framing meets a ProtocolError.
Source: PROTOCOL, the connection.
"""

from __future__ import annotations

from stapsrv.errors import ProtocolError
from stapsrv.rejection import RejectReason

_LENGTH_BYTES = 4
_MAX_SIGNED = (1 << 31) - 1


class FrameReader:
    """Collects one frame of at most ``max_bytes``, which bounds its memory, too."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Its length, and what follows that.
        self._received = bytearray()

    @property
    def announced_bytes(self) -> int | None:
        """The number of bytes that the peer has announced, once it has."""
        header = self._received[:_LENGTH_BYTES]
        return int.from_bytes(header, "big") if len(header) == _LENGTH_BYTES else None

    @property
    def missing_bytes(self) -> int:
        """The number of announced bytes that have not come yet, those beyond the limit included."""
        return max(0, _LENGTH_BYTES + (self.announced_bytes or 0) - len(self._received))

    @property
    def payload(self) -> bytes | None:
        """The payload once it is whole, else None; an empty one asks only for the certificate."""
        return None if self.missing_bytes else bytes(memoryview(self._received)[_LENGTH_BYTES:])

    def feed(self, data: bytes) -> None:
        """Take a chunk; a ProtocolError if more than ``max_bytes`` are announced, or bytes follow the end."""
        # Kept even if it is refused below: a peer hears why only after all that it sends is read.
        self._received += data
        announced = self.announced_bytes
        if announced is None:
            return
        if announced > _MAX_SIGNED:
            # The words of SystemTap 5.6, which takes the length for a signed number.
            raise ProtocolError(
                f"Invalid request size: negative value ({announced - (1 << 32)})",
                reject_reason=RejectReason.REQUEST_SIZE,
            )
        if announced > self._max_bytes:
            # Scripts look for the first words (PROTOCOL, log lines).
            raise ProtocolError(
                "Error size of (compressed) request file is too large:"
                f" it announces {announced} bytes, the limit is {self._max_bytes}",
                remedy="--max-compressed-request raises the limit",
                reject_reason=RejectReason.REQUEST_SIZE,
            )
        surplus = len(self._received) - _LENGTH_BYTES - announced
        if surplus > 0:
            raise ProtocolError(
                f"{surplus} bytes or more follow the {announced} bytes that the request announces"
            )

    def feed_eof(self) -> None:
        """Take the end of the stream; a ProtocolError if it came within the frame."""
        if not self._received or not self.missing_bytes:
            return
        come, whole = len(self._received), f"{_LENGTH_BYTES} bytes of its length"
        if self.announced_bytes is not None:
            come, whole = come - _LENGTH_BYTES, f"{self.announced_bytes} bytes that it announces"
        raise ProtocolError(f"The request ended after {come} of the {whole}")
