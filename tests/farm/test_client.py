import anyio
import attrs
import pytest
from kit.service import LogLines

from stapsrv.farm import client as client_module
from stapsrv.farm.client import Assignment, FarmAbsentError, FarmClient, _Attempt
from stapsrv.farm.offer import Node, Nodes, Offer

# Dask is made of asyncio.
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
OLD, NEW = Offer("6.1", "x86_64", "0" * 64), Offer("6.1", "x86_64", "f" * 64)


def client_of(*nodes):
    client = FarmClient("tcp://127.0.0.1:9", None, LogLines().log)
    client.is_connected = True
    client.nodes = Nodes(nodes)
    return client


def assignment(identity=None, wait_s=60.0):
    return Assignment(
        release="6.1",
        arch="x86_64",
        identity=identity,
        wait_s=wait_s,
        background=False,
        encode=lambda _name, _identity: b"",
        decode=lambda _message: None,
    )


async def test_promised_offer_is_taken_as_long_as_it_stands():
    client = client_of(Node("a", "a", 1, frozenset({OLD})), Node("b", "b", 9, frozenset({NEW})))
    assert await client._wait_offer(assignment(OLD.identity)) == OLD
    assert await client._wait_offer(assignment()) == NEW
    client.nodes = Nodes(client.nodes.nodes[1:])
    assert await client._wait_offer(assignment(OLD.identity)) == NEW


async def test_release_that_was_offered_is_waited_for():
    client = client_of(Node("a", "a", 1, frozenset({OLD})))
    client._connected_at = -1000.0
    client._remember()
    client.nodes = Nodes()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client._wait_offer, assignment())
            await anyio.wait_all_tasks_blocked()
            client.nodes = Nodes((Node("b", "b", 1, frozenset({OLD})),))
            client._announce()


async def test_release_that_was_never_offered_is_refused_at_once():
    client = client_of(Node("a", "a", 1, frozenset({OLD})))
    client._connected_at = -1000.0
    wanted = attrs.evolve(assignment(), release="6.9")
    with anyio.fail_after(1), pytest.raises(FarmAbsentError, match=r"headers of 6\.9"):
        await client._wait_offer(wanted)


async def test_deaths_are_counted_for_the_jobs_that_had_begun():
    client = client_of()
    begun, waiting = _Attempt("x", frozenset("ab")), _Attempt("y", frozenset("ab"))
    client._attempts = {"x": begun, "y": waiting}
    client._hear_begun((0.0, {"job": "x", "node": "a"}))
    client._hear_begun((0.0, {"job": "another server's", "node": "a"}))
    client._hear_begun((0.0, "what others log"))
    client._hear((0.0, {"action": "remove-worker", "expected": True, "worker": "a"}))
    assert (client.counts.lost_nodes, begun.deaths) == (0, 0)
    for _ in range(2):
        client._hear((0.0, {"action": "remove-worker", "expected": False, "worker": "a"}))
    client._hear((0.0, "what others log"))
    assert (client.counts.lost_nodes, begun.deaths, waiting.deaths) == (2, 1, 0)


async def test_scheduler_that_cannot_be_reached_is_told_of_in_one_line(monkeypatch):
    monkeypatch.setattr(client_module, "_CONNECT_S", 0.1)
    lines = LogLines()
    client = FarmClient("tcp://127.0.0.1:9", None, lines.log)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.run)
        await lines.wait("farm.unreachable")
        tasks.cancel_scope.cancel()
    assert lines.events() == ["farm.unreachable"]
    assert lines.reasons("farm.unreachable") == [client.fault]
