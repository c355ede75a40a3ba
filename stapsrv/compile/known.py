"""What is known of results: the questions that they answer, the answers made of them, and their counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import anyio
import attrs

from stapsrv.compile.engine import CompileResult
from stapsrv.compile.keys import digest

_MOST_ANSWERS = 3
"""Kept of one result: clients of one kind ask for one or two, signed or not, compressed or not."""
_VERSION = b"1"
UNKNOWN = "unknown yet"
"""Why a result is not kept of which nobody can say, or can say yet, whether it may be."""


@attrs.frozen
class Question:
    """A job, as far as its answer may be known.

    Attributes:
        request: the digest of the request.
        premise: the digest of all else that the answer depends on; None if that is not known.
        means: the digest of that part of it that stap's own cache takes little notice of.
        changes: how many changes of the tapsets and of the means were heard of by then.
        rc: what tells stap's ``rc`` file from what it was.
        reason: why not, in a word.
    """

    request: bytes
    premise: bytes | None = None
    means: bytes = b""
    changes: tuple[int, int] = (0, 0)
    rc: bytes = b""
    reason: str | None = None

    @property
    def flight(self) -> tuple[bytes, bytes | None, tuple[int, int], bytes]:
        """What is equal for requests that one compile suits: nothing has changed between them."""
        return self.request, self.premise, self.changes, self.rc

    @property
    def name(self) -> str:
        """What the answer is kept under, if all that it depends on is known."""
        return digest((_VERSION, self.request, self.premise or b"")).hex()


@attrs.define(kw_only=True)
class CacheCounts:
    """What the cache did for one server so far.

    Attributes:
        hits: requests answered from it.
        misses: requests that were compiled, and could have been known.
        shared: requests answered from the compile of another one.
        stored: results that were kept.
        uncacheable: by reason, compiles whose result could not be kept.
    """

    hits: int = 0
    misses: int = 0
    shared: int = 0
    stored: int = 0
    uncacheable: Counter[str] = attrs.field(factory=Counter)

    def snapshot(self) -> CacheCounts:
        """Return what it is now."""
        return attrs.evolve(self, uncacheable=self.uncacheable.copy())


@attrs.frozen(kw_only=True)
class CacheStatistics:
    """The cache of this process and all that share its directory, at one moment.

    Attributes:
        directory: where it is.
        entries: on disk.
        stored_bytes: on disk.
        evicted: entries that this process removed, for their age or for want of room.
        damaged: entries that this process found damaged, and removed.
    """

    directory: Path
    entries: int
    stored_bytes: int
    evicted: int
    damaged: int


@attrs.frozen
class AnswerKind:
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
class Known:
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
    _answers: dict[AnswerKind, tuple[object, bytes]] = attrs.field(factory=dict)

    @classmethod
    def settle_as(cls, result: CompileResult, reason: str | None = None) -> Known:
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

    def answer_for(self, signer: object, kind: AnswerKind | None) -> bytes | None:
        """Return the answer that was made for this before, if it was."""
        made = None if kind is None else self._answers.get(kind)
        return made[1] if made is not None and made[0] is signer else None

    def keep_answer(self, signer: object, kind: AnswerKind | None, answer: bytes) -> None:
        """Keep an answer for the next of its kind; the signatures of one signer, the last, are kept."""
        if kind is None:
            return
        if len(self._answers) >= _MOST_ANSWERS:
            self._answers.clear()
        self._answers[kind] = (signer, answer)
