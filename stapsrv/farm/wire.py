"""Messages of a farm as bytes: a header in JSON, and blobs behind it. Pure.

A message begins with its kind, whose last byte is the version of the form, and the length of the header. What
is decoded is foreign: nothing is believed before it is checked, and memory is bounded by the message.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from stapsrv.errors import ProtocolError

# A request has 10,000 files at most, each with two blobs; each length takes a few bytes of the header.
_MAX_HEADER_BYTES = 1024**2
_MAX_BLOBS = 50_000
_START = struct.Struct(">8sI")
_KIND_BYTES = 8
_BLOBS = "blobs"


def encode(kind: bytes, header: Mapping[str, object], blobs: Sequence[bytes]) -> bytes:
    """Return a message; ``kind`` has eight bytes."""
    text = json.dumps({**header, _BLOBS: list(map(len, blobs))}, separators=(",", ":")).encode("ascii")
    return b"".join((_START.pack(kind, len(text)), text, *blobs))


def decode(kind: bytes, message: object, *, max_bytes: int) -> tuple[Fields, list[bytes]]:
    """Return the header and the blobs of a message; a ProtocolError if it is none of ``kind``."""
    if not isinstance(message, bytes):
        raise _error("is not bytes")
    if len(message) > max_bytes:
        raise _error(f"has {len(message)} bytes, the limit is {max_bytes}")
    if len(message) < _START.size or message[: _KIND_BYTES - 1] != kind[:-1]:
        raise _error("is of another kind")
    found, length = _START.unpack_from(message)
    if found != kind:
        raise _error(f"is of version {found[-1]}, not {kind[-1]}; run one release of stapsrv everywhere")
    if length > _MAX_HEADER_BYTES:
        raise _error("has a header that is too long")
    end = _START.size + length
    try:
        header = json.loads(message[_START.size : end].decode("ascii"))
    except (ValueError, RecursionError) as exc:
        raise _error("has a header that is not JSON") from exc
    if not isinstance(header, dict):
        raise _error("has a header that is no object")
    fields = Fields(header)
    lengths = fields.integers(_BLOBS, most=max_bytes, count=_MAX_BLOBS)
    if end + sum(lengths) != len(message):
        raise _error("is not as long as it says")
    blobs = []
    for size in lengths:
        blobs.append(message[end : end + size])
        end += size
    return fields, blobs


@attrs.frozen
class Fields:
    """A decoded header; getters raise a ProtocolError for what is missing, mistyped or out of bounds."""

    _values: Mapping[str, Any]

    def text(self, name: str, *, most: int = 4096) -> str:
        """Return a string of at most ``most`` characters."""
        value = self._values.get(name)
        if not isinstance(value, str) or len(value) > most or not _is_sound(value):
            raise _error(f"has no sound text {name}")
        return value

    def optional_text(self, name: str, *, most: int = 4096) -> str | None:
        """Return a string, or None where it is null."""
        return None if self._values.get(name) is None else self.text(name, most=most)

    def texts(self, name: str, *, count: int, most: int = 4096) -> tuple[str, ...]:
        """Return at most ``count`` strings."""
        values = self._list(name, count)
        return tuple(Fields({name: value}).text(name, most=most) for value in values)

    def integer(self, name: str, *, most: int) -> int:
        """Return a whole number from 0 to ``most``."""
        value = self._values.get(name)
        if type(value) is not int or not 0 <= value <= most:
            raise _error(f"has no number {name} from 0 to {most}")
        return value

    def integers(self, name: str, *, most: int, count: int) -> tuple[int, ...]:
        """Return at most ``count`` whole numbers."""
        values = self._list(name, count)
        return tuple(Fields({name: value}).integer(name, most=most) for value in values)

    def number(self, name: str, *, most: float) -> float:
        """Return a number from 0 to ``most``."""
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= most:
            raise _error(f"has no number {name} from 0 to {most:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return whether something holds."""
        value = self._values.get(name)
        if not isinstance(value, bool):
            raise _error(f"does not say {name}")
        return value

    def object(self, name: str) -> Fields:
        """Return the fields of an object in it."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise _error(f"has no {name}")
        return Fields(value)

    def _list(self, name: str, count: int) -> list[Any]:
        values = self._values.get(name)
        if not isinstance(values, list) or len(values) > count:
            raise _error(f"has no list {name} of at most {count}")
        return values


def _is_sound(text: str) -> bool:
    # No lone surrogate, which nothing can write, and no NUL, which no program can be given.
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _error(problem: str) -> ProtocolError:
    return ProtocolError(f"A message of the farm {problem}")
