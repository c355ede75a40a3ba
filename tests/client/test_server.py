"""The Python API."""

from __future__ import annotations

import subprocess
import sys
import threading

import anyio
import pytest
from kit.compile_server import MODULE, response

import stapsrv.client
from stapsrv.client import ClientError, Job, KnownServers, Result, Server, ServerUnavailable, UnknownServer
from stapsrv.client.known_servers import default_path


@pytest.fixture
def trusting(server):
    return Server(server.address, trust=server.identity.fingerprint, timeout_s=60)


def test_script_becomes_a_module(trusting, server, unzipped):
    result = trusting.compile("probe", release="6.1", options=["-v"], arguments=["a"])
    assert (result.status, result.module, result.module_name) == (0, MODULE, "stap.ko")
    assert unzipped(server.requests[0])["script/-"] == b"probe"


def test_refused_script_is_a_result_and_no_error(trusting, server):
    server.answer = response(1, stderr="parse error\n")
    result = trusting.compile("prob", release="6.1")
    assert (result.status, result.module, result.stderr) == (1, None, "parse error\n")


def test_trust_takes_a_file_and_the_known_servers(server, monkeypatch):
    import os

    assert Server(server.address, trust=server.identity.pem).compile("x", release="6.1").status == 0
    assert Server(server.address, trust=str(server.identity.pem)).compile("x", release="6.1").status == 0
    unsure = Server(server.address)
    with pytest.raises(UnknownServer) as raised:
        unsure.compile("x", release="6.1")
    KnownServers(default_path(os.environ)).pin(unsure.address, raised.value.fingerprint)
    assert unsure.compile("x", release="6.1").status == 0


@pytest.mark.parametrize("wrong", [("host", None), ("host:1", "SHA256:AA"), ("host:1", "/no/such/file")])
def test_wrong_arguments_are_refused_at_once(wrong):
    with pytest.raises(ClientError):
        Server(wrong[0], trust=wrong[1])


def test_batch_keeps_its_order_and_bound(trusting, server):
    server.together = threading.Barrier(2)
    jobs = [Job(script=f"probe {number}", release="6.1") for number in range(8)]
    seen = []
    outcomes = trusting.compile_many(jobs, concurrency=2, on_outcome=lambda *told: seen.append(told))
    assert [outcome.job for outcome in outcomes] == jobs
    assert sorted(done for _, done, _ in seen) == list(range(1, 9))
    assert all(outcome.result.status == 0 for outcome in outcomes)
    assert server.busiest == 2


def test_job_that_fails_does_not_end_the_others(trusting, server):
    server.faults = ["", "close"]
    outcomes = trusting.compile_many([Job(script="probe", release="6.1")] * 4, concurrency=1)
    assert [type(outcome.error) for outcome in outcomes] == [
        type(None),
        ServerUnavailable,
        type(None),
        type(None),
    ]


@pytest.mark.anyio
async def test_asynchronous_calls_do_the_same(trusting, server):
    with anyio.fail_after(60):
        result = await trusting.compile_async("probe", release="6.1")
        assert (result.status, result.module) == (0, MODULE)
        with pytest.raises(ClientError):
            await trusting.compile_async("probe", release="6 1")
        server.together = threading.Barrier(2)
        jobs = [Job(script=f"probe {number}", release="6.1") for number in range(6)]
        seen = []
        outcomes = await trusting.compile_many_async(
            jobs, concurrency=2, on_outcome=lambda *told: seen.append(told)
        )
    assert [outcome.job for outcome in outcomes] == jobs
    assert [done for _, done, _ in seen] == list(range(1, 7))
    assert server.busiest == 2


@pytest.mark.anyio
async def test_asynchronous_batch_has_at_most_so_many_at_once(trusting, monkeypatch):
    running = []
    most = 0

    async def run(_self, job, **_more):
        nonlocal most
        running.append(job)
        most = max(most, len(running))
        await anyio.wait_all_tasks_blocked()
        running.remove(job)
        return Result(status=0)

    monkeypatch.setattr(Server, "run_async", run)
    with anyio.fail_after(60):
        await trusting.compile_many_async([Job(script=str(number)) for number in range(4)], concurrency=2)
    assert most == 2


def test_import_is_light_and_each_stable_name_is_there():
    code = (
        "import sys; from stapsrv.client import Server, Job, KnownServers\n"
        "heavy = {'anyio', 'asyncio', 'structlog', 'zeroconf', 'stapsrv.control', 'stapsrv.identity'}\n"
        "print(heavy & sys.modules.keys() or 'light')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "light\n"
    assert list(stapsrv.client._HOMES) == stapsrv.client.__all__
    assert all(getattr(stapsrv.client, name) is not None for name in stapsrv.client.__all__)
    with pytest.raises(AttributeError):
        _ = stapsrv.client.nothing
