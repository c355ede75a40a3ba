"""The frame around a request: a 4-byte big-endian length, that many bytes, then nothing.

A :class:`FrameReader` is fed with what arrives; a peer that breaks the framing meets a ProtocolError.
Source: PROTOCOL, the connection.
"""

from __future__ import annotations

from stapsrv.errors import ProtocolError
from stapsrv.rejection import RejectReason

_LENGTH_BYTES = 4


class FrameReader:
    """Collects one frame of at most ``max_bytes``, which bounds its memory, too."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._header = bytearray()
        self._announced: int | None = None
        self._missing = 0
        self._body = bytearray()

    @property
    def announced_bytes(self) -> int | None:
        """How many bytes the peer has announced, once it has."""
        return self._announced

    @property
    def missing_bytes(self) -> int:
        """How many bytes the peer has announced and not sent yet, those beyond the limit included."""
        return max(0, self._missing)

    @property
    def payload(self) -> bytes | None:
        """The payload once it is whole, else None; an empty one asks only for the certificate."""
        if self._announced is None or len(self._body) < self._announced:
            return None
        return bytes(self._body)

    def feed(self, data: bytes) -> None:
        """Take a chunk; a ProtocolError if more than ``max_bytes`` are announced, or bytes follow the end."""
        if self._announced is None:
            missing = _LENGTH_BYTES - len(self._header)
            self._header += data[:missing]
            data = data[missing:]
            if len(self._header) < _LENGTH_BYTES:
                return
            self._announced = int.from_bytes(self._header, "big")
            # Kept even when the check below fails: a peer hears why only after all that it sends is read.
            self._missing = self._announced - len(data)
        if self._announced > self._max_bytes:
            # Scripts look for the first words (PROTOCOL, log lines).
            raise ProtocolError(
                "Error size of (compressed) request file is too large:"
                f" it announces {self._announced} bytes, the limit is {self._max_bytes}",
                remedy="--max-compressed-request raises the limit",
                reject_reason=RejectReason.REQUEST_SIZE,
            )
        surplus = len(self._body) + len(data) - self._announced
        if surplus > 0:
            raise ProtocolError(
                f"{surplus} bytes or more follow the {self._announced} bytes that the request announces"
            )
        self._body += data
        self._missing = -surplus

    def feed_eof(self) -> None:
        """Take the end of the stream; a ProtocolError if it came within the frame."""
        if self._announced is not None and len(self._body) < self._announced:
            raise ProtocolError(
                f"The request ended after {len(self._body)} of the {self._announced} bytes that it announces"
            )
        if self._announced is None and self._header:
            raise ProtocolError(
                f"The request ended after {len(self._header)} of the {_LENGTH_BYTES} bytes of its length"
            )
