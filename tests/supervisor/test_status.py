"""What a snapshot says of servers that serve, and of those that do not."""

from __future__ import annotations

import socket

import pytest

from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.operations import ServerSpec
from stapsrv.supervisor.status import ServerWork

pytestmark = pytest.mark.anyio


async def test_total_of_compiles_is_bounded_over_all_servers(bench):
    async with bench.supervisor(max_compiles=1) as supervisor:
        assert supervisor.status().max_compiles == 1


async def test_server_that_has_failed_has_a_reason_and_no_work(bench):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with bench.supervisor() as supervisor:
            settings = bench.settings(port=taken.getsockname()[1])
            await supervisor.start([ServerSpec(settings, "/etc/one.conf")])
            (status,) = supervisor.status().servers
    assert (status.state, status.port, status.work) == (State.FAILED, None, ServerWork())
    assert "is in use" in status.reason


async def test_server_that_serves_keeps_port_0_in_its_settings_and_shows_the_one_it_got(bench):
    async with bench.supervisor() as supervisor:
        await supervisor.start([ServerSpec(bench.settings())])
        (status,) = supervisor.status().servers
        assert status.settings.port == 0
        assert status.port > 0
        assert [release.name for release in status.work.releases] == ["6.1.0-test"]
