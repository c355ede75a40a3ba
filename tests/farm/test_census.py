"""What the members of a farm say of themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio
import pytest
from kit.farm import stand_in_farm

from stapsrv.farm.ca import create_authority, issue
from stapsrv.farm.census import nodes_in, own_facts, own_versions, take_census
from stapsrv.farm.pem_files import read_certificate
from stapsrv.farm.scheduler import SchedulerOptions, open_scheduler
from stapsrv.farm.security import FarmCredentials

# Dask is made of asyncio.
asyncio_only = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
UNTIL = datetime(2030, 1, 1, tzinfo=UTC)


class TestScheduler:
    pytestmark = asyncio_only

    async def test_it_tells_its_versions_clock_and_certificate(self, tmp_path):
        create_authority(tmp_path)
        for name in ("one", "two"):
            issue(tmp_path, name)
        one, two = (
            FarmCredentials(tmp_path / "ca.pem", tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
            for name in ("one", "two")
        )
        async with open_scheduler(SchedulerOptions(listen="tls://127.0.0.1:0", credentials=one)) as scheduler:
            census = await take_census(scheduler.address, two)
        (member,) = census.members
        assert member.versions == own_versions()
        assert abs(member.ahead_s) < 5
        assert member.certificate_until == read_certificate(one.cert).not_valid_after_utc
        assert census.nodes.nodes == ()

    async def test_it_passes_on_what_its_nodes_tell(self, tmp_path, build_tree):
        with stand_in_farm(tmp_path, build_tree) as farm:
            farm.start_scheduler()
            farm.start_workers()
            with anyio.fail_after(60):
                # A node says that it offers a release, and then tells the scheduler.
                while not (census := await take_census(farm.address, None)).nodes.slots:
                    pass
        _, node = census.members
        assert (node.name, node.versions, node.certificate_until) == ("n0", own_versions(), None)
        assert abs(node.ahead_s) < 5
        assert census.nodes.slots == 2

    async def test_one_of_another_authority_is_not_talked_to(self, tmp_path):
        credentials = []
        for name in ("one", "two"):
            create_authority(tmp_path / name)
            made = issue(tmp_path / name, name)
            credentials.append(
                FarmCredentials(tmp_path / name / "ca.pem", made.certificate_file, made.key_file)
            )
        one, two = credentials
        async with open_scheduler(SchedulerOptions(listen="tls://127.0.0.1:0", credentials=one)) as scheduler:
            with pytest.raises(OSError, match=r"(?i)certificate|closed|TLS"):
                await take_census(scheduler.address, two)


def described(**facts):
    return {"tcp://a": {"name": "n0", "last_seen": 1000.0, **facts}}


def test_node_tells_its_versions_clock_and_certificate():
    facts = {**own_facts(UNTIL), "clock": 1007.0}
    (node,) = nodes_in(described(metrics={"stapsrv": facts}), ahead_s=2.0)
    assert (node.name, node.versions, node.ahead_s) == ("n0", own_versions(), 9.0)
    assert node.certificate_until == UNTIL


def test_clock_that_a_node_states_is_of_the_moment():
    said = own_facts(None)["clock"]
    assert abs(datetime.now(UTC) - datetime.fromtimestamp(said, UTC)) < timedelta(seconds=5)


@pytest.mark.parametrize(
    "metrics",
    [
        None,
        {},
        {"stapsrv": 7},
        {"stapsrv": {"versions": [], "clock": "now", "certificate_until": "soon"}},
        {"stapsrv": {"versions": {"Dask": 7}, "clock": None, "certificate_until": 1e300}},
    ],
)
def test_node_that_tells_nothing_of_sense_is_a_member_all_the_same(metrics):
    (node,) = nodes_in(described(metrics=metrics), ahead_s=0.0)
    assert (node.versions, node.ahead_s, node.certificate_until) == ({}, None, None)


def test_what_is_no_description_of_nodes_has_none():
    assert list(nodes_in("none", ahead_s=0.0)) == []
    assert list(nodes_in({"tcp://a": None}, ahead_s=0.0)) == []
