"""What is known of one request: filled in as it goes on, told when its connection ends.

Pure: durations come from the caller. The log's one line for each request, and the metrics, are made of
this and of nothing else.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence

import attrs

_DIGEST_BYTES = 4


class Outcome(enum.StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    """With stap's own answer, whatever stap said."""
    REFUSED = "refused"
    """With this server's own, since it came to no answer of stap's."""
    ABANDONED = "abandoned"
    """The client did not wait for its answer, or did not take it."""


class Source(enum.StrEnum):
    """Where an answer of stap's came from."""

    COMPILED = "compiled"
    """From a compile of its own."""
    HIT = "hit"
    """From the result cache."""
    SHARED = "shared"
    """From the compile of an equal request that was here already."""


@attrs.define(kw_only=True)
class RequestRecord:
    """One request that has arrived whole.

    Attributes:
        peer: the client's address and port.
        request_bytes: the size of the request as it was sent.
        release: the kernel that it asked for; empty if that could not be read.
        options: a digest of the client's options, equal for equal options.
        outcome: how it ended; abandoned until something better is known.
        source: where its answer came from, if from stap.
        uncacheable: why the next equal request will be compiled again, in a word; None if it need not be.
        rc: the exit status in the answer; None if there is none.
        answer_bytes: the size of the answer as it is sent.
        queue_s: seconds that it waited for a worker.
        compile_s: seconds that stap took; 0 where it ran for another request.
        sign_s: seconds that the signatures took.
        send_s: seconds that the client took to take its answer.
        refusal: why it was refused; None if it was not.
    """

    peer: str
    request_bytes: int
    release: str = ""
    options: str = ""
    outcome: Outcome = Outcome.ABANDONED
    source: Source | None = None
    uncacheable: str | None = None
    rc: int | None = None
    answer_bytes: int = 0
    queue_s: float = 0.0
    compile_s: float = 0.0
    sign_s: float = 0.0
    send_s: float = 0.0
    refusal: str | None = None

    @property
    def result(self) -> str:
        """How it ended, with the exit status of what was answered."""
        return self.outcome.value if self.rc is None else f"{self.outcome.value} rc={self.rc}"


def digest_options(arguments: Sequence[bytes]) -> str:
    """Return a short name for a client's options: enough to tell requests apart in a log."""
    digest = hashlib.sha256(b"".join(argument + b"\0" for argument in arguments))
    return digest.hexdigest()[: 2 * _DIGEST_BYTES]


def summary(record: RequestRecord) -> Mapping[str, object]:
    """Return the fields of a request's one line in the log; durations in seconds, to the millisecond."""
    seconds = {name: round(getattr(record, name), 3) for name in ("queue_s", "compile_s", "sign_s", "send_s")}
    return {
        "release": record.release or None,
        "options": record.options or None,
        "result": record.result,
        "outcome": record.outcome.value,
        "rc": record.rc,
        "source": record.source.value if record.source else None,
        "uncacheable": record.uncacheable,
        "request_bytes": record.request_bytes,
        "answer_bytes": record.answer_bytes,
        **seconds,
        "refusal": record.refusal,
    }
