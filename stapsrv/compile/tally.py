"""What became of connections and requests so far: counted over all servers of a process, for its metrics.

Pure. A server that is started again goes on counting where it was; only the process begins at zero. What
can be counted apart is bounded: no client can make it grow.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable

import attrs

from stapsrv.compile.record import Outcome, RequestRecord, Source
from stapsrv.refusal import Refusal

OTHER = "other"
"""In place of a release that is not served."""

_MOST_RELEASES = 200
"""Counted apart: more than a host ever serves, even one whose kernels come and go for years."""

BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
"""From a signature, which takes a millisecond, to the deadline of a compile."""


class ConnectionOutcome(enum.StrEnum):
    """How a connection ended."""

    REFUSED = "refused"
    """It was reset before the handshake: there was no room for it."""
    FAILED = "failed"
    """It broke, the client broke the protocol, or it took too long."""
    EMPTY = "empty"
    """The client wanted nothing, or no more than to see the certificate."""
    REQUEST = "request"
    """A request arrived whole, whatever became of that."""
    ENDED = "ended"
    """The server stopped before a request had arrived."""
    CRASHED = "crashed"
    """By an error of this program."""


class Result(enum.StrEnum):
    """How a request ended."""

    SUCCESS = "success"
    """stap did what it was asked for."""
    ERROR = "error"
    """stap found fault with the request, or could not do it."""
    REFUSED = "refused"
    """The server answered in stap's place."""
    ABANDONED = "abandoned"
    """The client did not wait for its answer, or did not take it."""

    @classmethod
    def of(cls, record: RequestRecord) -> Result:
        """Return how a request ended."""
        if record.outcome is Outcome.ANSWERED:
            return cls.SUCCESS if record.rc == 0 else cls.ERROR
        return cls(record.outcome.value)


@attrs.define
class Durations:
    """How often something took how long.

    Attributes:
        bounds_s: upper bounds in seconds, ascending.
        counts: of durations up to each bound and above the one before; the last is of longer ones.
        total_s: their sum.
    """

    bounds_s: tuple[float, ...] = BOUNDS_S
    counts: list[int] = attrs.field(
        default=attrs.Factory(lambda self: [0] * (len(self.bounds_s) + 1), takes_self=True)
    )
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.total_s += seconds


@attrs.define
class Tally:
    """All that is counted.

    Attributes:
        connections: by how they ended.
        refusals: what was turned away, by reason.
        requests: by release and result.
        sources: of stap's answers.
        not_kept: compiles whose result the cache could not keep, by reason.
        stages: how long requests took in each that they came to: ``queue``, ``compile``, ``sign``, ``send``.
        request_bytes: of all requests, as they were sent.
        answer_bytes: of all answers, likewise.
    """

    connections: Counter[ConnectionOutcome] = attrs.field(
        factory=lambda: Counter(dict.fromkeys(ConnectionOutcome, 0))
    )
    refusals: Counter[Refusal] = attrs.field(factory=lambda: Counter(dict.fromkeys(Refusal, 0)))
    requests: Counter[tuple[str, Result]] = attrs.field(factory=Counter)
    sources: Counter[Source] = attrs.field(factory=lambda: Counter(dict.fromkeys(Source, 0)))
    not_kept: Counter[str] = attrs.field(factory=Counter)
    stages: dict[str, Durations] = attrs.field(
        factory=lambda: {stage: Durations() for stage in ("queue", "compile", "sign", "send")}
    )
    request_bytes: int = 0
    answer_bytes: int = 0
    _releases: set[str] = attrs.field(factory=set, init=False)

    def expect(self, releases: Iterable[str]) -> None:
        """Have requests for served releases counted from zero on, where there are none yet."""
        for release in (*releases, OTHER):
            for result in Result:
                self.requests.setdefault((self._known(release), result), 0)

    def count_request(self, record: RequestRecord, *, served: Collection[str]) -> None:
        """Count a request that has ended.

        Args:
            record: all that is known of it.
            served: the releases of the server that it came to.
        """
        release = self._known(record.release) if record.release in served else OTHER
        self.requests[release, Result.of(record)] += 1
        if record.source is not None:
            self.sources[record.source] += 1
        if record.source is Source.COMPILED and record.uncacheable is not None:
            self.not_kept[record.uncacheable] += 1
        for stage, durations in self.stages.items():
            seconds: float = getattr(record, f"{stage}_s")
            if seconds > 0:
                durations.add(seconds)
        self.request_bytes += record.request_bytes
        self.answer_bytes += record.answer_bytes

    def _known(self, release: str) -> str:
        if len(self._releases) < _MOST_RELEASES:
            self._releases.add(release)
        return release if release in self._releases else OTHER
