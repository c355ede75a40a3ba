"""The metrics' text: what Prometheus reads from it, its names, and who else knows them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import attrs
import pytest
from kit.http import read_samples
from kit.supervisor import server_status, supervisor_status
from prometheus_client.parser import text_string_to_metric_families

from stapsrv.compile.engine.base import EngineStatus
from stapsrv.compile.health import Health
from stapsrv.compile.stats import (
    ConnectionOutcome,
    Histogram,
    Outcome,
    ProcessCounters,
    RequestRecord,
    Source,
)
from stapsrv.observe.metrics import ROWS, Kind, render
from stapsrv.observe.snapshot import Phase, Snapshot
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.status import ReleaseStatus

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "packaging" / "grafana" / "stapsrv.json"
DOCUMENT = ROOT / "docs" / "metrics.md"
EXPIRY = datetime(2030, 1, 1, tzinfo=UTC)
FARM = EngineStatus(
    name="dask",
    address="tls://farm:8786",
    connected=True,
    since=EXPIRY,
    workers=2,
    slots=8,
    running=5,
    waiting=1,
    retries=3,
    lost_workers=4,
)


@pytest.fixture
def snapshot() -> Snapshot:
    counters = ProcessCounters()
    counters.expect(["6.1"])
    record = RequestRecord(
        request_bytes=10,
        release="6.1",
        outcome=Outcome.ANSWERED,
        source=Source.COMPILED,
        uncacheable="code",
        rc=0,
        answer_bytes=20,
        queue_s=0.002,
        compile_s=3.0,
        sign_s=0.002,
        send_s=700.0,
    )
    counters.count_request(record, served=["6.1"])
    counters.connections[ConnectionOutcome.REQUEST] += 1
    lag = Histogram()
    lag.add(0.02)
    servers = (
        server_status(
            1,
            nickname='na"me\n',
            running=2,
            queued=3,
            connections=7,
            certificate_expires=EXPIRY,
            workers=8,
            engine=FARM,
            releases=(
                ReleaseStatus("6.1", Health.UNTRIED, None),
                ReleaseStatus("6.2", Health.UNHEALTHY, "error"),
            ),
        ),
        server_status(2, State.FAILED, reason="broken"),
        server_status(3, nickname="other of the farm", engine=FARM),
    )
    scripts = {"6.1": {"ok": 41, "not tried": 2}}
    status = supervisor_status(*servers, compiles=2, max_compiles=4, scripts=scripts)
    return Snapshot(
        phase=Phase.RUNNING,
        status=status,
        counters=counters,
        lag=lag,
        dropped_entries=5,
        children=frozenset({11, 12, 13}),
    )


@pytest.fixture
def samples(snapshot) -> dict[tuple[str, ...], float]:
    return read_samples(render(snapshot).decode())


def test_values(samples):
    expected = {
        ("stapsrv_servers", "serving"): 2,
        ("stapsrv_servers", "failed"): 1,
        ("stapsrv_servers", "draining"): 0,
        ("stapsrv_server_serving", 'na"me\n'): 1,
        ("stapsrv_server_serving", "2"): 0,
        ("stapsrv_release_usable", "6.1", 'na"me\n'): 1,
        ("stapsrv_release_usable", "6.2", 'na"me\n'): 0,
        ("stapsrv_scripts", "ok", "6.1"): 41,
        ("stapsrv_scripts", "not tried", "6.1"): 2,
        ("stapsrv_certificate_expiry_timestamp_seconds", 'na"me\n'): EXPIRY.timestamp(),
        ("stapsrv_workers", 'na"me\n'): 8,
        ("stapsrv_workers_busy", 'na"me\n'): 2,
        ("stapsrv_farm_connected", "tls://farm:8786"): 1,
        ("stapsrv_farm_workers", "tls://farm:8786"): 2,
        ("stapsrv_farm_slots", "tls://farm:8786"): 8,
        ("stapsrv_farm_jobs_running", "tls://farm:8786"): 5,
        ("stapsrv_farm_jobs_waiting", "tls://farm:8786"): 1,
        ("stapsrv_farm_retries_total", "tls://farm:8786"): 3,
        ("stapsrv_farm_lost_workers_total", "tls://farm:8786"): 4,
        ("stapsrv_requests_queued", 'na"me\n'): 3,
        ("stapsrv_connections_open", 'na"me\n'): 7,
        ("stapsrv_compiles_running",): 2,
        ("stapsrv_compiles_limit",): 4,
        ("stapsrv_connections_total", "request"): 1,
        ("stapsrv_connections_total", "refused"): 0,
        ("stapsrv_requests_total", "6.1", "success"): 1,
        ("stapsrv_requests_total", "6.1", "abandoned"): 0,
        ("stapsrv_requests_total", "other", "refused"): 0,
        ("stapsrv_answers_total", "compiled"): 1,
        ("stapsrv_answers_total", "hit"): 0,
        ("stapsrv_results_not_kept_total", "code"): 1,
        ("stapsrv_request_compile_seconds_bucket", "2.5"): 0,
        ("stapsrv_request_compile_seconds_bucket", "5.0"): 1,
        ("stapsrv_request_compile_seconds_bucket", "+Inf"): 1,
        ("stapsrv_request_compile_seconds_count",): 1,
        ("stapsrv_request_compile_seconds_sum",): 3,
        ("stapsrv_request_send_seconds_bucket", "600.0"): 0,
        ("stapsrv_request_send_seconds_bucket", "+Inf"): 1,
        ("stapsrv_received_bytes_total",): 10,
        ("stapsrv_sent_bytes_total",): 20,
        ("stapsrv_log_entries_lost_total",): 5,
        ("stapsrv_event_loop_lag_seconds_count",): 1,
        ("stapsrv_child_processes",): 3,
    }
    assert {key: samples.get(key) for key in expected} == expected
    assert ("stapsrv_certificate_expiry_timestamp_seconds", "2") not in samples
    assert samples["process_resident_memory_bytes",] > 1e6


def test_a_snapshot_stays_as_it_is(snapshot):
    before = render(frozen := snapshot.frozen())
    snapshot.counters.request_bytes += 1
    snapshot.counters.stages["queue"].add(1)
    snapshot.lag.add(1)
    after = render(frozen)
    own = [line for line in before.splitlines() if line.startswith(b"stapsrv_")]
    assert own == [line for line in after.splitlines() if line.startswith(b"stapsrv_")]
    assert attrs.evolve(snapshot).frozen().counters.request_bytes == 11


def test_names_are_as_prometheus_wants_them(snapshot):
    """What ``promtool check metrics`` complains of: names, units, suffixes, HELP and TYPE."""
    text = render(snapshot).decode()
    metadata = re.findall(r"^# (HELP|TYPE) (\S+) (.+)$", text, re.MULTILINE)
    names = {name for _, name, _ in metadata}
    assert all((kind, name) in {row[:2] for row in metadata} for kind in ("HELP", "TYPE") for name in names)
    assert len(metadata) == 2 * len(names)
    for family in text_string_to_metric_families(text):
        name = family.name
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", name)
        assert family.type in {"counter", "gauge", "histogram"}
        assert family.documentation
        # The parser takes the suffix from a counter's name.
        assert not name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert not re.search(r"_(milli|micro|nano|kilo|kibi|mega|minute|hour|day|percent)", name)
        assert family.type != "histogram" or name.endswith("_seconds")
        for sample in family.samples:
            assert family.type != "counter" or sample.name.endswith("_total")
            assert not set(sample.labels) & {"instance", "job", "quantile"}
            assert family.type == "histogram" or "le" not in sample.labels
            assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in sample.labels)


def test_every_row_of_the_table_has_samples(snapshot):
    names = {name for name, *_ in _names(snapshot)}
    assert {row.name for row in ROWS} <= names


def test_the_documentation_has_each_metric_with_its_labels():
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", text, re.MULTILINE)
    documented = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), help_) for name, kind, labels, help_ in rows
    }
    own = {name: row for name, row in documented.items() if name.startswith("stapsrv_")}
    assert own == {row.name: (row.kind.value, row.labels, row.help) for row in ROWS}
    assert "process_resident_memory_bytes" in documented


@pytest.mark.parametrize("path", [DASHBOARD, DOCUMENT], ids=lambda path: path.name)
def test_documented_queries_name_metrics_that_exist(path, snapshot):
    known = {"stapsrv_build_info"} | {name for name, *_ in _names(snapshot)}
    text = path.read_text(encoding="utf-8")
    if path is DASHBOARD:
        panels = json.loads(text)["panels"]
        text = "\n".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    asked = set(re.findall(r"\b((?:stapsrv|process)_[a-z_]+[a-z])\b", text))
    assert len(asked) > 10
    assert asked <= known | {
        f"{row.name}{part}"
        for row in ROWS
        if row.kind is Kind.HISTOGRAM
        for part in ("_bucket", "_sum", "_count")
    }


def test_a_dashboard_shows_every_row_but_few():
    text = DASHBOARD.read_text(encoding="utf-8")
    missing = {row.name for row in ROWS if row.name not in text}
    assert missing == set()


def test_unknown_children_give_no_sample(snapshot):
    text = render(attrs.evolve(snapshot, children=None)).decode()
    assert ("stapsrv_child_processes",) not in read_samples(text)


def _names(snapshot: Snapshot) -> list[tuple[str, str]]:
    text = render(snapshot).decode()
    return [(name, kind) for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)]
