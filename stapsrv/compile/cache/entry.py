"""What is known of results: the questions that they answer, the answers made of them, and their counts."""

from __future__ import annotations

import anyio
import attrs

from stapsrv.compile.cache.key import UNKNOWN
from stapsrv.compile.engine.base import CompileResult

_MOST_ANSWERS = 3
"""Kept of one result: clients of one kind ask for one or two, signed or not, compressed or not."""


@attrs.frozen
class ResponseVariant:
    """What an answer is made for, beside a result and who signs it.

    Attributes:
        deflate: whether it is compressed.
        signed: whether it carries signatures by the certificate's key.
        messages: of the server's own.
    """

    deflate: bool
    signed: bool
    messages: tuple[str, ...]


@attrs.define(eq=False)
class CacheEntry:
    """A result, and the answers that were made of it.

    Attributes:
        result: as stap made it.
        reason: why it is not kept, in a word; None if it is. Right once it is settled.
        touched: when its file was last said to be in use, by the monotonic clock.
        settled: set when it is kept, or is not going to be.
    """

    result: CompileResult
    reason: str | None = UNKNOWN
    touched: float = 0.0
    settled: anyio.Event = attrs.field(factory=anyio.Event)
    _answers: dict[ResponseVariant, tuple[object, bytes]] = attrs.field(factory=dict)

    @classmethod
    def settle_as(cls, result: CompileResult, reason: str | None = None) -> CacheEntry:
        """Return one that is kept, or never will be."""
        known = cls(result)
        known.settle(reason)
        return known

    def settle(self, reason: str | None) -> None:
        """Say that it is kept, or why it is not."""
        self.reason = reason
        self.settled.set()

    @property
    def size(self) -> int:
        """In bytes, without its answers, which are no larger."""
        result = self.result
        return len(result.stdout) + len(result.stderr) + sum(len(file.data) for file in result.files)

    def response_for(self, signer: object, kind: ResponseVariant | None) -> bytes | None:
        """Return the answer that was made for this before, if it was."""
        made = None if kind is None else self._answers.get(kind)
        return made[1] if made is not None and made[0] is signer else None

    def keep_response(self, signer: object, kind: ResponseVariant | None, answer: bytes) -> None:
        """Keep an answer for the next of its kind; the signatures of one signer, the last, are kept."""
        if kind is None:
            return
        if len(self._answers) >= _MOST_ANSWERS:
            self._answers.clear()
        self._answers[kind] = (signer, answer)
