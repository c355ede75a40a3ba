"""A bounded load."""

from __future__ import annotations

import math

import pytest
from kit.compile_server import Identity, RecordingServer, response

from stapsrv.bench.load import LoadResult, measure, unlike
from stapsrv.client import Job, Server

JOB = Job(script="probe begin { exit() }", release="6.1")


@pytest.fixture
def server(tmp_path):
    with RecordingServer.open(Identity.make(tmp_path)) as opened:
        yield opened


def run(server, **more):
    target = Server(server.address, trust=server.identity.fingerprint)
    settings = {"clients": 3, "requests": 10, "is_new": False, "deadline_s": 60.0} | more
    return measure(target, JOB, **settings)


def test_so_many_requests_are_sent_by_so_many_clients(server):
    result = run(server)
    assert (len(result.seconds), result.failed, result.clients) == (10, 0, 3)
    assert len(server.requests) == 10
    assert len(set(server.requests)) == 1
    assert server.busiest <= 3
    assert result.per_second > 0


def test_new_scripts_differ(server):
    run(server, is_new=True)
    assert len(set(server.requests)) == 10
    assert unlike(JOB).script.startswith("probe begin { exit() }\nprobe end")


def test_failures_are_counted_with_their_reason(server):
    server.answer = response(1, stderr="WARNING: x\nparse error: y\n")
    result = run(server)
    assert (result.failed, result.failure, result.seconds) == (10, "parse error: y", ())
    assert math.isnan(result.percentile(50))


def test_none_is_begun_after_the_deadline(server):
    assert run(server, deadline_s=0.0).seconds == ()


def test_percentiles_are_of_those_that_came():
    result = LoadResult(
        clients=1, seconds=tuple(float(number) for number in range(1, 101)), failed=0, elapsed_s=10.0
    )
    assert [result.percentile(each) for each in (50, 90, 99, 100)] == [50.0, 90.0, 99.0, 100.0]
    assert result.per_second == 10.0
