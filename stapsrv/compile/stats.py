"""What is known of one request: filled in as it goes on, told when its connection ends.

Pure: durations come from the caller. The log's one line for each request, and the metrics, are made of
this and of nothing else.

How long the last requests of a server took: medians for people, who want to know how it is now. Pure.

What became of connections and requests so far: counted over all servers of a process, for its metrics.

Pure. A server that is started again goes on counting where it was; only the process begins at zero. What
can be counted apart is bounded: no client can make it grow.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import statistics
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import anyio
import attrs

from stapsrv.rejection import RejectReason

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

    peer: str = ""
    request_bytes: int = 0
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


@contextlib.contextmanager
def timed(record: RequestRecord, duration: str) -> Iterator[None]:
    """Add the time that the block takes to a duration of the record, such as ``queue_s``."""
    began = anyio.current_time()
    try:
        yield
    finally:
        setattr(record, duration, getattr(record, duration) + anyio.current_time() - began)


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


_KEPT = 100


@attrs.frozen
class RecentTimes:
    """What the last requests took that were answered by stap.

    Attributes:
        requests: how many these are, a hundred at most.
        queue_s: the median of their waits for a worker, in seconds; None where there are none.
        compile_s: the median of what stap took, over those that it ran for; None where there are none.
    """

    requests: int = 0
    queue_s: float | None = None
    compile_s: float | None = None


class LatencyWindow:
    """The last requests of one server."""

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def add(self, record: RequestRecord) -> None:
        """Add a request that has ended."""
        if record.outcome is Outcome.ANSWERED:
            self._times.append((record.queue_s, record.compile_s))

    def times(self) -> RecentTimes:
        """Return the medians of now."""
        compiles = [compile_s for _, compile_s in self._times if compile_s > 0]
        return RecentTimes(
            len(self._times),
            statistics.median(queue_s for queue_s, _ in self._times) if self._times else None,
            statistics.median(compiles) if compiles else None,
        )


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
class Histogram:
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
class ProcessCounters:
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
    refusals: Counter[RejectReason] = attrs.field(factory=lambda: Counter(dict.fromkeys(RejectReason, 0)))
    requests: Counter[tuple[str, Result]] = attrs.field(factory=Counter)
    sources: Counter[Source] = attrs.field(factory=lambda: Counter(dict.fromkeys(Source, 0)))
    not_kept: Counter[str] = attrs.field(factory=Counter)
    stages: dict[str, Histogram] = attrs.field(
        factory=lambda: {stage: Histogram() for stage in ("queue", "compile", "sign", "send")}
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
