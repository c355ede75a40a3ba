"""The metrics: one table of what each is called, means and is made of; and their text for Prometheus.

What is counted is counted elsewhere (:mod:`stapsrv.compile.stats`), with or without somebody who asks.
Here it is only put into words, from a snapshot, in a thread.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stapsrv.compile.health import Health
from stapsrv.compile.stats import BOUNDS_S, Histogram
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
Read = Callable[[Snapshot], Samples]


class Row(NamedTuple):
    """One metric: its name with the unit, the names of its labels, and how its samples are read."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Read


def _single(read: Callable[[Snapshot], float | Histogram]) -> Read:
    return lambda snapshot: [((), read(snapshot))]


def _by_label(read: Callable[[Snapshot], Mapping[Any, int]]) -> Read:
    return lambda snapshot: [((str(label),), count) for label, count in read(snapshot).items()]


def _gauge(name: str, meaning: str, read: Read, *labels: str) -> Row:
    return Row(name, Kind.GAUGE, meaning, labels, read)


def _counter(name: str, meaning: str, read: Read, *labels: str) -> Row:
    return Row(name, Kind.COUNTER, meaning, labels, read)


def _histogram(name: str, meaning: str, read: Read) -> Row:
    return Row(name, Kind.HISTOGRAM, meaning, (), read)


def _stage(name: str, meaning: str, stage: str) -> Row:
    return _histogram(name, meaning, _single(lambda now: now.counters.stages[stage]))


def _of_servers(name: str, meaning: str, read: Callable[[ServerStatus], float]) -> Row:
    def samples(now: Snapshot) -> Samples:
        return [((server.nickname,), read(server)) for server in now.status.servers]

    return _gauge(name, meaning, samples, "server")


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
    _gauge(
        "stapsrv_build_info",
        "Always 1; the labels tell the versions of stapsrv and stap, and how compiles are contained.",
        _build,
        "version",
        "stap_version",
        "containment",
    ),
    _gauge(
        "stapsrv_servers", "Compile servers in each state; serving is the one to be in.", _servers, "state"
    ),
    _of_servers(
        "stapsrv_server_serving",
        "Whether a server serves: 1, or 0 in every other state.",
        lambda server: server.state is State.SERVING,
    ),
    _gauge(
        "stapsrv_release_usable",
        "Whether a server can compile for a release: 0 if not even the shortest script compiled, else 1.",
        _releases,
        "server",
        "release",
    ),
    _gauge(
        "stapsrv_certificate_expiry_timestamp_seconds",
        "When a server's certificate expires; it is renewed a month before.",
        _certificates,
        "server",
    ),
    _of_servers(
        "stapsrv_workers",
        "Requests that a server compiles at the same time at most.",
        lambda server: server.settings.workers,
    ),
    _of_servers(
        "stapsrv_workers_busy", "Requests of a server that compile now.", lambda server: server.work.running
    ),
    _of_servers(
        "stapsrv_requests_queued",
        "Requests of a server that wait for a worker now.",
        lambda server: server.work.queued,
    ),
    _of_servers(
        "stapsrv_connections_open",
        "Open connections of a server, whatever they are doing.",
        lambda server: server.work.connections,
    ),
    _gauge(
        "stapsrv_compiles_running",
        "Requests that compile now, over all servers.",
        _single(lambda now: now.status.compiles),
    ),
    _gauge(
        "stapsrv_compiles_limit",
        "Requests that may compile at the same time, over all servers.",
        _single(lambda now: now.status.max_compiles),
    ),
    _counter(
        "stapsrv_connections_total",
        "Connections that have ended: refused (reset, no room), failed, empty (no request), request, "
        "ended (the server stopped), crashed.",
        _by_label(lambda now: now.counters.connections),
        "outcome",
    ),
    _counter(
        "stapsrv_refusals_total",
        "Connections and requests turned away, by the bound that they met.",
        _by_label(lambda now: now.counters.refusals),
        "reason",
    ),
    _counter(
        "stapsrv_requests_total",
        "Requests that have ended: success, error (stap found fault), refused (by the server), abandoned (by "
        "the client); by kernel release, other where it is not served.",
        lambda now: [
            ((release, result.value), count) for (release, result), count in now.counters.requests.items()
        ],
        "release",
        "result",
    ),
    _counter(
        "stapsrv_answers_total",
        "Answers of stap by where they came from: compiled, hit (known), shared (with an equal request).",
        _by_label(lambda now: now.counters.sources),
        "source",
    ),
    _counter(
        "stapsrv_results_not_kept_total",
        "Compiles whose result the result cache could not store, by reason.",
        _by_label(lambda now: now.counters.uncacheable),
        "reason",
    ),
    _stage("stapsrv_request_queue_seconds", "How long requests waited for a worker.", "queue"),
    _stage("stapsrv_request_compile_seconds", "How long stap took for requests.", "compile"),
    _stage("stapsrv_request_sign_seconds", "How long the signatures of answers took.", "sign"),
    _stage("stapsrv_request_send_seconds", "How long clients took to take their answers.", "send"),
    _counter(
        "stapsrv_received_bytes_total",
        "Bytes of requests that arrived whole, before TLS.",
        _single(lambda now: now.counters.request_bytes),
    ),
    _counter(
        "stapsrv_sent_bytes_total",
        "Bytes of answers, before TLS.",
        _single(lambda now: now.counters.answer_bytes),
    ),
    _counter(
        "stapsrv_log_entries_lost_total",
        "Entries that a log did not take: its disk is full, or nobody reads it.",
        _single(lambda now: now.dropped_entries),
    ),
    _histogram(
        "stapsrv_event_loop_lag_seconds",
        "How late the event loop was, looked at every 5 seconds.",
        _single(lambda now: now.lag),
    ),
    _gauge("stapsrv_child_processes", "Child processes, without those below them.", _children),
)


class Exposition(Collector):
    """Renders snapshots in Prometheus' text format, with a registry of its own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._snapshot: Snapshot | None = None
        # A registry asks its collectors, so the snapshot goes by way of this object.
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self, snapshot: Snapshot) -> bytes:
        """Return the text; takes milliseconds, and is not to be called twice at the same time."""
        self._snapshot = snapshot
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Return every metric of the table, for the registry."""
        snapshot = self._snapshot
        return iter(()) if snapshot is None else (_family(row, row.read(snapshot)) for row in ROWS)


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
    # The upper bounds, and how many were below each.
    bounds = [*(f"{float(bound)}" for bound in BOUNDS_S), "+Inf"]
    below = itertools.accumulate(durations.counts)
    return [(bound, float(count)) for bound, count in zip(bounds, below, strict=True)]
