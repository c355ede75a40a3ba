"""The metrics: one table of what each is called, means and is made of; and their text for Prometheus.

What is counted is counted elsewhere (:mod:`stapsrv.compile.stats`), with or without somebody who asks.
Here it is only put into words, from a snapshot, in a thread.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stapsrv.compile.health import Health
from stapsrv.compile.stats import Histogram
from stapsrv.observe.snapshot import Snapshot
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.status import ServerStatus


class Kind(enum.StrEnum):
    """What kind of metric one is, as Prometheus has it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


# Values of labels, and a value.
Samples = Iterable[tuple[tuple[str, ...], float | Histogram]]


class Row(NamedTuple):
    """One metric: its name with the unit, the names of its labels, and how its samples are read."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Callable[[Snapshot], Samples]


def _single(read: Callable[[Snapshot], float | Histogram]) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [((), read(snapshot))]


def _by_label(read: Callable[[Snapshot], Mapping[Any, int]]) -> Callable[[Snapshot], Samples]:
    """Return samples of a counter for each value of its one label: a word of an enumeration, or a text."""
    return lambda snapshot: [((str(label),), count) for label, count in read(snapshot).items()]


def _stage(name: str) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [((), snapshot.counters.stages[name])]


def _of_servers(read: Callable[[ServerStatus], float]) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [((server.nickname,), read(server)) for server in snapshot.status.servers]


def _build(snapshot: Snapshot) -> Samples:
    status = snapshot.status
    return [((status.version, status.stap_version, status.containment), 1)]


def _servers(snapshot: Snapshot) -> Samples:
    states = Counter(server.state for server in snapshot.status.servers)
    return [((state.value,), states[state]) for state in State]


def _certificates(snapshot: Snapshot) -> Samples:
    for server in snapshot.status.servers:
        if server.work.certificate_expires is not None:
            yield (server.nickname,), server.work.certificate_expires.timestamp()


def _children(snapshot: Snapshot) -> Samples:
    return [] if snapshot.children is None else [((), len(snapshot.children))]


def _releases(snapshot: Snapshot) -> Samples:
    for server in snapshot.status.servers:
        for release in server.work.releases:
            yield (server.nickname, release.name), release.health is not Health.UNHEALTHY


ROWS = (
    Row(
        "stapsrv_build_info",
        Kind.GAUGE,
        "Always 1; the labels tell the versions of stapsrv and stap, and how compiles are contained.",
        ("version", "stap_version", "containment"),
        _build,
    ),
    Row(
        "stapsrv_servers",
        Kind.GAUGE,
        "Compile servers in each state; serving is the one to be in.",
        ("state",),
        _servers,
    ),
    Row(
        "stapsrv_server_serving",
        Kind.GAUGE,
        "Whether a server serves: 1, or 0 in every other state.",
        ("server",),
        _of_servers(lambda server: server.state is State.SERVING),
    ),
    Row(
        "stapsrv_release_usable",
        Kind.GAUGE,
        "Whether a server can compile for a release: 0 if not even the shortest script compiled, else 1.",
        ("server", "release"),
        _releases,
    ),
    Row(
        "stapsrv_certificate_expiry_timestamp_seconds",
        Kind.GAUGE,
        "When a server's certificate expires; it is renewed a month before.",
        ("server",),
        _certificates,
    ),
    Row(
        "stapsrv_workers",
        Kind.GAUGE,
        "Requests that a server compiles at the same time at most.",
        ("server",),
        _of_servers(lambda server: server.settings.workers),
    ),
    Row(
        "stapsrv_workers_busy",
        Kind.GAUGE,
        "Requests of a server that compile now.",
        ("server",),
        _of_servers(lambda server: server.work.running),
    ),
    Row(
        "stapsrv_requests_queued",
        Kind.GAUGE,
        "Requests of a server that wait for a worker now.",
        ("server",),
        _of_servers(lambda server: server.work.queued),
    ),
    Row(
        "stapsrv_connections_open",
        Kind.GAUGE,
        "Open connections of a server, whatever they are doing.",
        ("server",),
        _of_servers(lambda server: server.work.connections),
    ),
    Row(
        "stapsrv_compiles_running",
        Kind.GAUGE,
        "Requests that compile now, over all servers.",
        (),
        _single(lambda now: now.status.compiles),
    ),
    Row(
        "stapsrv_compiles_limit",
        Kind.GAUGE,
        "Requests that may compile at the same time, over all servers.",
        (),
        _single(lambda now: now.status.max_compiles),
    ),
    Row(
        "stapsrv_connections_total",
        Kind.COUNTER,
        "Connections that have ended: refused (reset, no room), failed, empty (no request), request, "
        "ended (the server stopped), crashed.",
        ("outcome",),
        _by_label(lambda now: now.counters.connections),
    ),
    Row(
        "stapsrv_refusals_total",
        Kind.COUNTER,
        "Connections and requests turned away, by the bound that they met.",
        ("reason",),
        _by_label(lambda now: now.counters.refusals),
    ),
    Row(
        "stapsrv_requests_total",
        Kind.COUNTER,
        "Requests that have ended: success, error (stap found fault), refused (by the server), abandoned (by "
        "the client); by kernel release, other where it is not served.",
        ("release", "result"),
        lambda now: [
            ((release, result.value), count) for (release, result), count in now.counters.requests.items()
        ],
    ),
    Row(
        "stapsrv_answers_total",
        Kind.COUNTER,
        "Answers of stap by where they came from: compiled, hit (known), shared (with an equal request).",
        ("source",),
        _by_label(lambda now: now.counters.sources),
    ),
    Row(
        "stapsrv_results_not_kept_total",
        Kind.COUNTER,
        "Compiles whose result the result cache could not store, by reason.",
        ("reason",),
        _by_label(lambda now: now.counters.uncacheable),
    ),
    Row(
        "stapsrv_request_queue_seconds",
        Kind.HISTOGRAM,
        "How long requests waited for a worker.",
        (),
        _stage("queue"),
    ),
    Row(
        "stapsrv_request_compile_seconds",
        Kind.HISTOGRAM,
        "How long stap took for requests.",
        (),
        _stage("compile"),
    ),
    Row(
        "stapsrv_request_sign_seconds",
        Kind.HISTOGRAM,
        "How long the signatures of answers took.",
        (),
        _stage("sign"),
    ),
    Row(
        "stapsrv_request_send_seconds",
        Kind.HISTOGRAM,
        "How long clients took to take their answers.",
        (),
        _stage("send"),
    ),
    Row(
        "stapsrv_received_bytes_total",
        Kind.COUNTER,
        "Bytes of requests that arrived whole, before TLS.",
        (),
        _single(lambda now: now.counters.request_bytes),
    ),
    Row(
        "stapsrv_sent_bytes_total",
        Kind.COUNTER,
        "Bytes of answers, before TLS.",
        (),
        _single(lambda now: now.counters.answer_bytes),
    ),
    Row(
        "stapsrv_log_entries_lost_total",
        Kind.COUNTER,
        "Entries that a log did not take: its disk is full, or nobody reads it.",
        (),
        _single(lambda now: now.dropped_entries),
    ),
    Row(
        "stapsrv_event_loop_lag_seconds",
        Kind.HISTOGRAM,
        "How late the event loop was, looked at every 5 seconds.",
        (),
        _single(lambda now: now.lag),
    ),
    Row(
        "stapsrv_child_processes",
        Kind.GAUGE,
        "Child processes, without those below them.",
        (),
        _children,
    ),
)


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """Return every metric of the table, for Prometheus' library."""
    for row in ROWS:
        yield _family(row, row.read(snapshot))


class Exposition:
    """Renders snapshots in Prometheus' text format, with a registry of its own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # A registry asks its collectors, so the snapshot goes by way of one.
        self._latest = _Latest()
        self._registry.register(self._latest)
        ProcessCollector(registry=self._registry)

    def text(self, snapshot: Snapshot) -> bytes:
        """Return the text; takes milliseconds, and is not to be called twice at the same time."""
        self._latest.snapshot = snapshot
        return generate_latest(self._registry)


class _Latest(Collector):
    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def collect(self) -> Iterator[Metric]:
        return iter(()) if self.snapshot is None else families(self.snapshot)


def _family(row: Row, samples: Samples) -> Metric:
    match row.kind:
        case Kind.HISTOGRAM:
            histogram = HistogramMetricFamily(row.name, row.help, labels=row.labels)
            for labels, durations in samples:
                assert isinstance(durations, Histogram)  # noqa: S101 - the table's business
                histogram.add_metric(labels, _buckets(durations), durations.total_s)
            return histogram
        case Kind.COUNTER:
            return _plain(CounterMetricFamily(row.name, row.help, labels=row.labels), samples)
        case Kind.GAUGE:
            return _plain(GaugeMetricFamily(row.name, row.help, labels=row.labels), samples)


def _plain(family: CounterMetricFamily | GaugeMetricFamily, samples: Samples) -> Metric:
    for labels, value in samples:
        assert not isinstance(value, Histogram)  # noqa: S101 - the table's business
        family.add_metric(labels, float(value))
    return family


def _buckets(durations: Histogram) -> Sequence[tuple[str, float]]:
    """Return the upper bounds, and how many were below each."""
    bounds = [*(f"{float(bound)}" for bound in durations.bounds_s), "+Inf"]
    below = 0
    buckets = []
    for bound, count in zip(bounds, durations.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    return buckets
