"""The method ``watch``: who may, what comes, how it ends, and that nobody holds up another."""

from __future__ import annotations

import contextlib

import anyio
import pytest
from kit.control import READING_PEER, answers, error_of, peer_of, running_control
from kit.supervisor import server_status

from stapsrv.compile.stats import RequestRecord
from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.control.server import watching

pytestmark = pytest.mark.anyio


async def test_reader_is_told_of_changes_until_the_time_is_over(tmp_path):
    async with (
        running_control(tmp_path, server_status(7), peers=[READING_PEER]) as control,
        peer_of(control) as peer,
    ):
        first = await peer.call("watch", {"timeout_s": 0.5}, request_id="w")
        assert (first["method"], first["params"]["id"]) == ("update", "w")
        snapshot = first["params"]["update"]
        assert (snapshot["kind"], snapshot["supervisor"]["user"]) == ("snapshot", "me")
        assert snapshot["servers"]["7"]["state"] == "serving"
        with control.supervisor.activity.follow(RequestRecord(), server=7, client="192.0.2.1:1"):
            running = (await peer.receive())["params"]["update"]["running"]
        assert (running["1"]["client"], running["1"]["stage"]) == ("192.0.2.1:1", "read")
        messages = [await peer.receive()]
        while "result" not in messages[-1]:
            messages.append(await peer.receive())
        assert messages[-1] == {"jsonrpc": "2.0", "id": "w", "result": {}}


async def test_other_requests_of_the_connection_are_answered_meanwhile(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        await peer.call("watch", request_id="w")
        assert (await peer.call("hello"))["result"]["access"] == "all"


async def test_bad_parameters_are_refused(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        code, _ = error_of(await peer.call("watch", {"timeout_s": -1}))
        assert code == Code.INVALID_PARAMS
        code, _ = error_of(await peer.call("watch", {"every": 1}))
        assert code == Code.INVALID_PARAMS


async def test_number_of_watches_is_bounded_and_one_that_ends_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "MAX_WATCHES", 1)
    async with running_control(tmp_path) as control, peer_of(control) as other:
        async with peer_of(control) as peer:
            await peer.call("watch")
            assert error_of(await other.call("watch")) == (
                Code.BUSY,
                "1 watch already; ask for the status, or try again later",
            )
        # Its end is noticed with the next thing to tell.
        with anyio.fail_after(30):
            while "error" in await other.call("watch"):
                control.supervisor.activity.changes.note()


async def test_peer_who_reads_nothing_costs_nobody_anything_and_is_disconnected(tmp_path):
    many = [server_status(number) for number in range(1, 400)]
    async with running_control(tmp_path, *many, write_s=0.3) as control, peer_of(control) as other:
        async with peer_of(control) as peer:
            await peer.request("watch")
            for number in range(1, 20):
                control.supervisor.change(number, running=1)
                await answers(other)
            with anyio.fail_after(30):
                while "control.stalled" not in control.lines.events():
                    control.supervisor.activity.changes.note()
                    await answers(other)


async def test_watch_ends_with_the_supervisor(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        await peer.call("watch", request_id="w")
        control.scope.cancel()
        with contextlib.suppress(KeyError):
            while (message := await peer.receive())["method"] == "update":
                pass
        assert error_of(message, request_id="w") == (
            Code.SHUTTING_DOWN,
            "the supervisor is shutting down",
        )
