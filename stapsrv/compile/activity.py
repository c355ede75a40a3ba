"""The requests of all servers of this process: those under way, the last ones, and their numbers over time.

Whatever clients do, it stays bounded: by the number of connections, and by the constants below.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

import attrs

from stapsrv.compile.stats import Outcome, RequestRecord, Source, Stage
from stapsrv.rejection import RejectReason
from stapsrv.system.changes import ChangeCount
from stapsrv.text import shortened

LAST_REQUESTS = 200
# Ten minutes, and what is needed to draw them at any moment.
INTERVAL_S = 10
INTERVALS = 61
_RELEASE_CHARACTERS = 80


@attrs.frozen(kw_only=True)
class RunningRequest:
    """A request that has arrived whole and is not done; what is not known yet is None."""

    server: int  # its id
    client: str  # address and port, as in the log
    since: datetime
    stage: Stage
    release: str | None
    digest: str | None
    worker: str | None  # of the farm


@attrs.frozen(kw_only=True)
class EndedRequest:
    """A request that is done; durations in seconds."""

    server: int
    client: str
    since: datetime
    ended: datetime
    release: str | None
    digest: str | None
    worker: str | None
    outcome: Outcome
    rc: int | None
    source: Source | None
    build: str | None
    rejection: RejectReason | None
    request_bytes: int
    answer_bytes: int
    lookup_s: float
    queue_s: float
    compile_s: float
    sign_s: float
    send_s: float


@attrs.frozen
class Interval:
    """The requests of ``INTERVAL_S`` seconds: those that ended, hits among them, the longest queue."""

    requests: int = 0
    hits: int = 0
    queued: int = 0


@attrs.frozen
class _Followed:
    record: RequestRecord
    server: int
    client: str
    since: datetime


class Activity:
    """The requests of a process; ``changes`` counts what happens to them, and to their servers."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self.changes = ChangeCount()
        self._now = now
        self._last_number = 0
        self._running: dict[int, _Followed] = {}
        self._ended: deque[tuple[int, EndedRequest]] = deque(maxlen=LAST_REQUESTS)
        # Those in which something happened, by the time when they began.
        self._intervals: dict[int, Interval] = {}
        self._queued = 0

    @contextlib.contextmanager
    def follow(self, record: RequestRecord, *, server: int, client: str) -> Iterator[None]:
        """Have a request under way while the block runs; it is numbered, and never again so."""
        self._last_number = number = self._last_number + 1
        followed = _Followed(record, server, client, self._date())
        self._running[number] = followed
        record.stage_changed = lambda before: self._moved(before, record.stage)
        self.changes.note()
        try:
            yield
        finally:
            record.stage_changed = None
            del self._running[number]
            self._ended.append((number, _ended(followed, self._date())))
            self._moved(record.stage, None)
            self._count(requests=1, hits=record.source is Source.HIT)

    def running(self) -> Mapping[int, RunningRequest]:
        """Return the requests under way by their numbers, the oldest first."""
        return {number: _running(followed) for number, followed in self._running.items()}

    def last(self) -> Mapping[int, EndedRequest]:
        """Return the last requests by their numbers, in the order in which they ended."""
        return dict(self._ended)

    def intervals(self) -> Mapping[int, Interval]:
        """Return the intervals in which something happened, by the Unix times when they began, in order."""
        return dict(self._intervals)

    def _moved(self, before: Stage, now: Stage | None) -> None:
        # Who finds a worker free is queued for no time, and makes no queue.
        if now is Stage.QUEUE and self._queued:
            self._count()
        self._queued += (now is Stage.QUEUE) - (before is Stage.QUEUE)
        if now is not Stage.QUEUE and self._queued:
            self._count()
        self.changes.note()

    def _count(self, *, requests: int = 0, hits: int = 0) -> None:
        begin = int(self._now()) // INTERVAL_S * INTERVAL_S
        before = self._intervals.get(begin, Interval())
        self._intervals[begin] = Interval(
            before.requests + requests, before.hits + hits, max(before.queued, self._queued)
        )
        while len(self._intervals) > INTERVALS:
            del self._intervals[next(iter(self._intervals))]

    def _date(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)


def _short(release: str) -> str | None:
    # It is whatever a client sent.
    return shortened(release, _RELEASE_CHARACTERS) or None


def _running(followed: _Followed) -> RunningRequest:
    record = followed.record
    return RunningRequest(
        server=followed.server,
        client=followed.client,
        since=followed.since,
        stage=record.stage,
        release=_short(record.release),
        digest=record.digest or None,
        worker=record.worker,
    )


def _ended(followed: _Followed, ended: datetime) -> EndedRequest:
    record = followed.record
    return EndedRequest(
        server=followed.server,
        client=followed.client,
        since=followed.since,
        ended=ended,
        release=_short(record.release),
        digest=record.digest or None,
        worker=record.worker,
        outcome=record.outcome,
        rc=record.rc,
        source=record.source,
        build=record.build,
        rejection=record.rejection,
        request_bytes=record.request_bytes,
        answer_bytes=record.answer_bytes,
        lookup_s=record.lookup_s,
        queue_s=record.queue_s,
        compile_s=record.compile_s,
        sign_s=record.sign_s,
        send_s=record.send_s,
    )
