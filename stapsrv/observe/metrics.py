"""The metrics: one table of names, meanings and sources, and their text for Prometheus.

What is counted is counted elsewhere (:mod:`stapsrv.compile.stats`), with or without somebody who asks.
Here it is only put into words, from a snapshot, in a thread.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stapsrv.compile.engine.base import EngineStatus
from stapsrv.compile.health import Health
from stapsrv.compile.stats import BOUNDS_S, Histogram
from stapsrv.observe.snapshot import Snapshot
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.status import ServerStatus


class Kind(enum.StrEnum):
    """The type of a metric, as Prometheus has it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


# One value, or a value for each value of the one label, or for the values of several.
Samples: TypeAlias = float | Histogram | Mapping[Any, float]
Read: TypeAlias = Callable[[Snapshot], Samples]


class Row(NamedTuple):
    """One metric: its name with the unit, the names of its labels, and how its samples are read."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Read


def _gauge(name: str, meaning: str, read: Read, *labels: str) -> Row:
    return Row(name, Kind.GAUGE, meaning, labels, read)


def _counter(name: str, meaning: str, read: Read, *labels: str) -> Row:
    return Row(name, Kind.COUNTER, meaning, labels, read)


def _histogram(name: str, meaning: str, read: Callable[[Snapshot], Histogram]) -> Row:
    return Row(name, Kind.HISTOGRAM, meaning, (), read)


def _stage(name: str, meaning: str, stage: str) -> Row:
    return _histogram(name, meaning, lambda now: now.counters.stages[stage])


def _of_servers(name: str, meaning: str, read: Callable[[ServerStatus], float]) -> Row:
    def samples(now: Snapshot) -> Samples:
        return {server.nickname: read(server) for server in now.status.servers}

    return _gauge(name, meaning, samples, "server")


def _of_farms(kind: Kind, name: str, meaning: str, read: Callable[[EngineStatus], float]) -> Row:
    # Servers of one farm tell the same of it.
    def samples(now: Snapshot) -> Samples:
        found = (server.work.engine for server in now.status.servers)
        return {engine.address: read(engine) for engine in found if engine is not None}

    return Row(name, kind, meaning, ("farm",), samples)


def _build(now: Snapshot) -> Samples:
    return {(now.status.version, now.status.stap_version, now.status.containment): 1}


def _servers(now: Snapshot) -> Samples:
    states = Counter(server.state for server in now.status.servers)
    return {state.value: states[state] for state in State}


def _certificates(now: Snapshot) -> Samples:
    expiries = {server.nickname: server.work.certificate_expires for server in now.status.servers}
    return {name: expires.timestamp() for name, expires in expiries.items() if expires is not None}


def _children(now: Snapshot) -> Samples:
    return {} if now.children is None else len(now.children)


def _releases(now: Snapshot) -> Samples:
    return {
        (server.nickname, release.name): release.health is not Health.UNHEALTHY
        for server in now.status.servers
        for release in server.work.releases
    }


def _scripts(now: Snapshot) -> Samples:
    return {
        (release, verdict): count
        for release, counts in now.status.scripts.items()
        for verdict, count in counts.items()
    }


# Of the text that is rendered.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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
        "stapsrv_scripts",
        "Scripts of collections by what the last check came to; see docs/scripts.md.",
        _scripts,
        "release",
        "outcome",
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
        lambda server: server.work.workers or server.settings.workers,
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
        lambda now: now.status.compiles,
    ),
    _gauge(
        "stapsrv_compiles_limit",
        "Requests that may compile at the same time, over all servers.",
        lambda now: now.status.max_compiles,
    ),
    _of_farms(
        Kind.GAUGE,
        "stapsrv_farm_connected",
        "Whether the scheduler of a farm is reached: 1, or 0.",
        lambda farm: farm.connected,
    ),
    _of_farms(
        Kind.GAUGE,
        "stapsrv_farm_workers",
        "Workers of a farm, those without a release to offer included.",
        lambda farm: farm.workers,
    ),
    _of_farms(
        Kind.GAUGE, "stapsrv_farm_slots", "Compiles that a farm runs at once.", lambda farm: farm.slots
    ),
    _of_farms(
        Kind.GAUGE,
        "stapsrv_farm_jobs_running",
        "Jobs of this process that a farm has.",
        lambda farm: farm.running,
    ),
    _of_farms(
        Kind.GAUGE,
        "stapsrv_farm_jobs_waiting",
        "Jobs of this process that no farm has taken yet.",
        lambda farm: farm.waiting,
    ),
    _of_farms(
        Kind.COUNTER,
        "stapsrv_farm_retries_total",
        "Jobs that were given to a farm once more.",
        lambda farm: farm.retries,
    ),
    _of_farms(
        Kind.COUNTER,
        "stapsrv_farm_lost_workers_total",
        "Workers of a farm that ended without a word.",
        lambda farm: farm.lost_workers,
    ),
    _counter(
        "stapsrv_connections_total",
        "Connections that have ended: refused (reset, no room), failed, empty (no request), request, "
        "ended (the server stopped), crashed.",
        lambda now: now.counters.connections,
        "outcome",
    ),
    _counter(
        "stapsrv_refusals_total",
        "Connections and requests turned away, by the bound that they met.",
        lambda now: now.counters.refusals,
        "reason",
    ),
    _counter(
        "stapsrv_requests_total",
        "Requests that have ended: success, error (stap found fault), refused (by the server), abandoned (by "
        "the client); by kernel release, other where it is not served.",
        lambda now: now.counters.requests,
        "release",
        "result",
    ),
    _counter(
        "stapsrv_answers_total",
        "Answers of stap by where they came from: compiled, hit (known), shared (with an equal request).",
        lambda now: now.counters.sources,
        "source",
    ),
    _counter(
        "stapsrv_results_not_kept_total",
        "Compiles whose result the result cache could not store, by reason.",
        lambda now: now.counters.uncacheable,
        "reason",
    ),
    _counter(
        "stapsrv_builds_total",
        "New modules by how they were built: prepared (by a plan), or plain (by make), with the reason.",
        lambda now: now.counters.builds,
        "build",
    ),
    _stage("stapsrv_request_queue_seconds", "How long requests waited for a worker.", "queue"),
    _stage("stapsrv_request_compile_seconds", "How long stap took for requests.", "compile"),
    _stage("stapsrv_request_sign_seconds", "How long the signatures of answers took.", "sign"),
    _stage("stapsrv_request_send_seconds", "How long clients took to take their answers.", "send"),
    _counter(
        "stapsrv_received_bytes_total",
        "Bytes of requests that arrived whole, before TLS.",
        lambda now: now.counters.request_bytes,
    ),
    _counter(
        "stapsrv_sent_bytes_total",
        "Bytes of answers, before TLS.",
        lambda now: now.counters.answer_bytes,
    ),
    _counter(
        "stapsrv_log_entries_lost_total",
        "Entries that a log did not take: its disk is full, or nobody reads it.",
        lambda now: now.dropped_entries,
    ),
    _histogram(
        "stapsrv_event_loop_lag_seconds",
        "How late the event loop was, measured every 5 seconds.",
        lambda now: now.lag,
    ),
    _gauge("stapsrv_child_processes", "Child processes, without those below them.", _children),
)


class _Metrics(Collector):
    """Every metric of the table, for a registry."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        return (_family(row, self._snapshot) for row in ROWS)


def render(snapshot: Snapshot) -> bytes:
    """Return a snapshot, and what the kernel knows of this process, as text; takes milliseconds."""
    registry = CollectorRegistry()
    registry.register(_Metrics(snapshot))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _family(row: Row, snapshot: Snapshot) -> Metric:
    samples = row.read(snapshot)
    if isinstance(samples, Histogram):
        histogram = HistogramMetricFamily(row.name, row.help)
        histogram.add_metric((), _buckets(samples), samples.total_s)
        return histogram
    kind = CounterMetricFamily if row.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(row.name, row.help, labels=row.labels)
    for labels, value in (samples if isinstance(samples, Mapping) else {(): samples}).items():
        values = labels if isinstance(labels, tuple) else (labels,)
        family.add_metric(tuple(map(str, values)), float(value))
    return family


def _buckets(durations: Histogram) -> Sequence[tuple[str, float]]:
    # The upper bounds, and how many were below each.
    bounds = [*(f"{float(bound)}" for bound in BOUNDS_S), "+Inf"]
    below = itertools.accumulate(durations.counts)
    return [(bound, float(count)) for bound, count in zip(bounds, below, strict=True)]
