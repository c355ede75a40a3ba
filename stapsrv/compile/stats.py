"""Records of requests, and counts of them.

A :class:`RequestRecord` is filled in as its request goes on; the log's one line for each request, and the
metrics, are made of it. :class:`LatencyWindow` has the last requests of one server, for people who want to
know how it is now. :class:`ProcessCounters` counts over all servers of the process, for its metrics: a server
that is started again goes on counting. No client can make any of it grow without bound.
"""

from __future__ import annotations

import contextlib
import enum
import statistics
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import anyio
import attrs

from stapsrv.rejection import RejectReason

OTHER = "other"  # in place of a release that is not served
# From a signature, which takes a millisecond, to the deadline of a compile.
BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)

_STAGES = ("queue", "compile", "sign", "send")  # those whose durations are counted
_WINDOW_REQUESTS = 100
# More than a host ever serves, even one whose kernels come and go for years.
_MAX_RELEASES = 200


class Outcome(enum.StrEnum):
    """The end of a request: with stap's response, with this server's own, or without one."""

    ANSWERED = "answered"
    REFUSED = "refused"
    ABANDONED = "abandoned"


class Source(enum.StrEnum):
    """The source of stap's response: the request's own compile, the cache, or that of an equal request."""

    COMPILED = "compiled"
    HIT = "hit"
    SHARED = "shared"


class Stage(enum.StrEnum):
    """The stage of a request."""

    READ = "read"  # the request is taken apart
    LOOKUP = "lookup"  # in the cache
    SHARED = "shared"  # it waits for the compile of an equal request
    QUEUE = "queue"  # it waits for a worker
    COMPILE = "compile"
    SIGN = "sign"
    SEND = "send"
    STORE = "store"  # the client has its answer, which is being stored


@attrs.define(kw_only=True)
class RequestRecord:
    """One request that has arrived whole; durations in seconds."""

    request_bytes: int = 0
    release: str = ""  # empty if it could not be read
    options: str = ""  # a digest, equal for equal options
    digest: str = ""  # equal for equal requests; empty before it was looked up
    outcome: Outcome = Outcome.ABANDONED
    source: Source | None = None
    build: str | None = None  # how the module was built: ``prepared``, or ``plain: REASON``
    worker: str | None = None  # of the farm, where one compiled it
    uncacheable: str | None = None  # why the next equal request will be compiled again, in a word
    rc: int | None = None
    answer_bytes: int = 0
    lookup_s: float = 0.0  # of a known result; with it come waits for scans, and for what is being stored
    queue_s: float = 0.0
    compile_s: float = 0.0  # 0 where the compile ran for another request
    sign_s: float = 0.0
    send_s: float = 0.0
    refusal: str | None = None
    rejection: RejectReason | None = None
    stage: Stage = Stage.READ
    # Called with the stage before, after each change.
    stage_changed: Callable[[Stage], None] | None = attrs.field(default=None, eq=False, repr=False)

    def enter(self, stage: Stage) -> None:
        """Begin another stage."""
        before, self.stage = self.stage, stage
        if self.stage_changed is not None:
            self.stage_changed(before)

    @property
    def result(self) -> str:
        """The outcome, and the exit status in the response."""
        return self.outcome.value if self.rc is None else f"{self.outcome.value} rc={self.rc}"


@contextlib.contextmanager
def timed(record: RequestRecord, stage: Stage) -> Iterator[None]:
    """Have the record in a stage, and add the time that the block takes to its duration, ``STAGE_s``."""
    duration = f"{stage}_s"
    record.enter(stage)
    began = anyio.current_time()
    try:
        yield
    finally:
        setattr(record, duration, getattr(record, duration) + anyio.current_time() - began)


def summary(record: RequestRecord) -> Mapping[str, object]:
    """Return the fields of a request's one line in the log."""
    return {
        "release": record.release or None,
        "options": record.options or None,
        "result": record.result,
        "outcome": record.outcome.value,
        "rc": record.rc,
        "source": record.source.value if record.source else None,
        "build": record.build,
        "worker": record.worker,
        "uncacheable": record.uncacheable,
        "request_bytes": record.request_bytes,
        "answer_bytes": record.answer_bytes,
        "lookup_s": round(record.lookup_s, 3),
        **{f"{stage}_s": round(getattr(record, f"{stage}_s"), 3) for stage in _STAGES},
        "refusal": record.refusal,
    }


@attrs.frozen
class RecentTimes:
    """Medians of the last requests that stap answered; of compiles, of those that had one of their own."""

    requests: int = 0
    queue_s: float | None = None
    compile_s: float | None = None


class LatencyWindow:
    """The last requests of one server."""

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque(maxlen=_WINDOW_REQUESTS)

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


class ConnectionOutcome(enum.StrEnum):
    """The end of a connection."""

    REFUSED = "refused"  # reset before the handshake
    FAILED = "failed"  # it broke, the client broke the protocol, or it took too long
    EMPTY = "empty"  # the client wanted no more than to see the certificate
    REQUEST = "request"  # a request arrived whole, however that ended
    ENDED = "ended"  # the server stopped before a request had arrived
    CRASHED = "crashed"


class Result(enum.StrEnum):
    """The outcome of a request for the metrics: an answer of stap's is a success or an error."""

    SUCCESS = "success"
    ERROR = "error"
    REFUSED = "refused"
    ABANDONED = "abandoned"

    @classmethod
    def of(cls, record: RequestRecord) -> Result:
        """Return how a request ended."""
        if record.outcome is Outcome.ANSWERED:
            return cls.SUCCESS if record.rc == 0 else cls.ERROR
        return cls(record.outcome.value)


@attrs.define
class Histogram:
    """The number of durations in each range: up to each of BOUNDS_S but above the one before, and longer."""

    counts: list[int] = attrs.field(factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


@attrs.define
class ProcessCounters:
    """The counts of all servers, for the metrics."""

    connections: Counter[ConnectionOutcome] = attrs.field(
        factory=lambda: Counter(dict.fromkeys(ConnectionOutcome, 0))
    )
    refusals: Counter[RejectReason] = attrs.field(factory=lambda: Counter(dict.fromkeys(RejectReason, 0)))
    requests: Counter[tuple[str, Result]] = attrs.field(factory=Counter)
    sources: Counter[Source] = attrs.field(factory=lambda: Counter(dict.fromkeys(Source, 0)))
    uncacheable: Counter[str] = attrs.field(factory=Counter)
    builds: Counter[str] = attrs.field(factory=lambda: Counter(prepared=0))  # of new modules
    stages: dict[str, Histogram] = attrs.field(factory=lambda: {stage: Histogram() for stage in _STAGES})
    request_bytes: int = 0
    answer_bytes: int = 0
    _releases: set[str] = attrs.field(factory=set, init=False)

    def expect(self, releases: Iterable[str]) -> None:
        """Count requests for these releases from zero on: a metric that is missing raises no alarm."""
        for release in (*releases, OTHER):
            for result in Result:
                self.requests.setdefault((self._counted(release), result), 0)

    def count_request(self, record: RequestRecord, *, served: Collection[str]) -> None:
        """Count a request that has ended, to a server of the releases ``served``."""
        release = self._counted(record.release) if record.release in served else OTHER
        self.requests[release, Result.of(record)] += 1
        if record.source is not None:
            self.sources[record.source] += 1
        if record.source is Source.COMPILED and record.uncacheable is not None:
            self.uncacheable[record.uncacheable] += 1
        if record.source is Source.COMPILED and record.build is not None:
            self.builds[record.build] += 1
        for stage, durations in self.stages.items():
            seconds: float = getattr(record, f"{stage}_s")
            if seconds > 0:
                durations.add(seconds)
        self.request_bytes += record.request_bytes
        self.answer_bytes += record.answer_bytes

    def _counted(self, release: str) -> str:
        if len(self._releases) < _MAX_RELEASES:
            self._releases.add(release)
        return release if release in self._releases else OTHER


@attrs.define(kw_only=True)
class CacheCounts:
    """The cache's counts for one server."""

    hits: int = 0
    misses: int = 0  # compiles of requests that had a key, but no entry
    shared: int = 0  # requests answered by the compile of another one
    stored: int = 0
    uncacheable: Counter[str] = attrs.field(factory=Counter)  # by reason
    builds: Counter[str] = attrs.field(factory=Counter)  # how new modules were built

    def snapshot(self) -> CacheCounts:
        """Return a copy."""
        return attrs.evolve(self, uncacheable=self.uncacheable.copy(), builds=self.builds.copy())
