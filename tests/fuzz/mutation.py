"""Changes to inputs: the same for the suite, where hypothesis chooses them, and for long runs by chance."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs

MAX_BYTES = 50_000
"""As large as a request is by default, unpacked."""


@attrs.frozen
class Change:
    """One change to an input.

    Attributes:
        kind: which one.
        position: in parts of 65536 of the input.
        length: of what is removed or repeated.
        piece: what is put there.
    """

    kind: int
    position: int
    length: int
    piece: bytes


REPEAT = 7
"""The kind that repeats a piece up to the largest size; of large inputs alone, which take their time."""
KINDS = REPEAT + 1


def changed(data: bytes, changes: Sequence[Change]) -> bytes:
    """Return an input with changes made to it, one after the other."""
    for change in changes:
        at = change.position * len(data) // 65536
        rest = data[at:]
        match change.kind:
            case 0:
                data = data[:at] + change.piece + rest
            case 1:
                data = data[:at] + rest[change.length :]
            case 2:
                data = data[:at] + change.piece + rest[len(change.piece) :]
            case 3:
                data = data[:at] + rest[: change.length] * 2 + rest[change.length :]
            case 4:
                data = data[:at]
            case 5 if rest:
                data = data[:at] + bytes([rest[0] ^ 1 << change.length % 8]) + rest[1:]
            case 6 if rest:
                data = data[:at] + bytes([(rest[0] + change.length - 32) % 256]) + rest[1:]
            case 7:  # REPEAT
                fragment = change.piece or rest[: change.length]
                room = MAX_BYTES - len(data)
                data = data[:at] + fragment * (room // max(len(fragment), 1)) + rest
    return data[:MAX_BYTES]


def some_changes(chance: random.Random, words: Sequence[bytes], pool: Sequence[bytes]) -> list[Change]:
    """Make up a few changes; pieces are words, parts of other inputs, and noise."""
    return [_some_change(chance, words, pool) for _ in range(chance.choice((1, 1, 1, 2, 3, 5)))]


def _some_change(chance: random.Random, words: Sequence[bytes], pool: Sequence[bytes]) -> Change:
    piece = chance.randbytes(chance.randrange(9))
    if words and chance.random() < 0.5:
        piece = chance.choice(words)
    elif chance.random() < 0.3:
        other = chance.choice(pool)
        start = chance.randrange(len(other) + 1)
        piece = other[start : start + chance.randrange(64)]
    return Change(chance.randrange(KINDS), chance.randrange(65536), chance.randrange(1, 64), piece)
