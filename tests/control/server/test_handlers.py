"""The methods: parameters, results, progress, time-outs, and a real supervisor at the end of the line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from kit.control import LinePeer, peer_of, running_control
from kit.service import LogLines
from kit.supervisor import DEFAULTS, FIRST_ID, SINCE, FakeScripts, server_status

from stapsrv.compile.activity import Activity
from stapsrv.config.settings import ServerSettings
from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.control.server.auth import Policy
from stapsrv.control.server.server import serve_control
from stapsrv.control.server.task import CommandTask
from stapsrv.errors import ConfigError, LifecycleError
from stapsrv.observe.feed import LiveFeed
from stapsrv.sandbox.sandbox import Sandbox
from stapsrv.scripts.history import History
from stapsrv.scripts.matrix import Cell, Result, Verdict
from stapsrv.supervisor.advertise import ServerAdvertiser
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.operations import Outcome, ServerSpec
from stapsrv.supervisor.own_compiles import OwnCompiles
from stapsrv.supervisor.script_outcomes import ScriptOutcomes
from stapsrv.supervisor.server.listener import address_of, open_listener
from stapsrv.supervisor.state.ports import PortMemory
from stapsrv.supervisor.state.stat_files import StatFiles
from stapsrv.supervisor.status import ServerStatus, ServerWork
from stapsrv.supervisor.supervisor import SavedState, Supervisor
from stapsrv.supervisor.warmup import WarmMemory, Warmup

pytestmark = pytest.mark.anyio


async def refused(peer: LinePeer, method: str, params: object = None) -> tuple[int, str]:
    message = await peer.call(method, params)
    assert message["id"] == 1
    return message["error"]["code"], message["error"]["message"]


async def outcomes(peer: LinePeer, method: str, params: object) -> list[tuple]:
    """Call an action; returns id, state and error of each outcome."""
    message = await peer.call(method, params)
    assert set(message) == {"jsonrpc", "id", "result"}, message
    return [
        (
            *((outcome["server"]["id"], outcome["server"]["state"]) if outcome["server"] else (None, None)),
            outcome["error"],
        )
        for outcome in message["result"]["outcomes"]
    ]


# Parameters.


@pytest.mark.parametrize(
    ("method", "params", "text"),
    [
        ("hello", {"x": 1}, "params: unknown member 'x'; it has none"),
        ("status", {"ids": []}, "params: unknown member 'ids'; it has none"),
        ("end", {"now": True}, "params: unknown member 'now'; it has none"),
        ("start", {}, "params: the member 'servers' is missing"),
        ("start", {"servers": {}}, "params.servers: expected an array, not an object"),
        ("start", {"servers": [{}]}, "params.servers[0]: the member 'settings' is missing"),
        (
            "start",
            {"servers": [], "server": 1},
            "params: unknown member 'server'; it may have timeout_s, progress, servers",
        ),
        (
            "start",
            {"servers": [{"settings": {}}, {"settings": {"PORT": -1}}]},
            "params.servers[1].settings.PORT:"
            " expected a port number from 0 to 65535 (0: the kernel picks one), not '-1'",
        ),
        (
            "start",
            {"servers": [{"settings": {}, "origin": "a\n# stapsrv port: assigned"}]},
            r"params.servers[0].origin: 'a\n# stapsrv port: assigned' holds a line break",
        ),
        ("stop", {}, "params: the member 'ids' is missing"),
        ("stop", {"ids": "7"}, 'params.ids: expected an array or "all", not a string'),
        ("restart", {"ids": ["7"]}, "params.ids[0]: expected a whole number, not a string"),
        ("drain", {"ids": [True]}, "params.ids[0]: expected a whole number, not true"),
        ("undrain", {"ids": None}, 'params.ids: expected an array or "all", not null'),
        (
            "stop",
            {"ids": [], "timeout_s": -1},
            "params.timeout_s: expected seconds, from 0 to 86400, or null for no limit",
        ),
        (
            "stop",
            {"ids": [], "timeout_s": 1e999},
            "params.timeout_s: expected seconds, from 0 to 86400, or null for no limit",
        ),
        (
            "stop",
            {"ids": [], "timeout_s": "5"},
            "params.timeout_s: expected a number or null, not a string",
        ),
        ("stop", {"ids": [], "progress": 1}, "params.progress: expected true or false, not a number"),
        ("reload", {"force": 1}, "params.force: expected true or false, not a number"),
        ("reload", {"config_file": 1}, "params.config_file: expected a string or null, not a number"),
        ("reload", {"config_file": "x"}, "params.config_file: expected an absolute path, not 'x'"),
        ("reload", {"config_file": "/\0"}, r"params.config_file: '/\x00' holds a NUL"),
    ],
)
async def test_wrong_parameters_are_named(tmp_path, method, params, text):
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        await peer.send(
            json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            .replace("Infinity", "1e999")
            .encode()
            + b"\n"
        )
        error = (await peer.receive())["error"]
        assert (error["code"], error["message"]) == (Code.INVALID_PARAMS, text)
        # The connection and everything else are as before.
        assert "result" in await peer.call("hello")
        assert control.supervisor.told == []
        assert control.lines.entries == []


async def test_unknown_method(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        assert await refused(peer, "Status\x1b") == (
            Code.METHOD_NOT_FOUND,
            r"unknown method 'Status\x1b'; the methods are"
            " hello, status, watch, start, stop, restart, drain, undrain, reload, check_scripts,"
            " script_history, end",
        )


async def test_positional_parameters_leave_the_connection_open(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        code, _ = await refused(peer, "stop", [[7]])
        assert code == Code.INVALID_PARAMS
        assert "result" in await peer.call("hello")


# What reaches the supervisor, and what comes back.


async def test_start_hands_on_wishes_with_all_defaults_filled_in(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        servers = [
            {"settings": {"NICKNAME": "one", "DEFINE": ["A=1"], "KEEP": True}, "origin": "/conf.d/one.conf"},
            {"settings": {}, "origin": None},
        ]
        assert await outcomes(peer, "start", {"servers": servers}) == [
            (FIRST_ID, "serving", None),
            (FIRST_ID + 1, "serving", None),
        ]
        one = ServerSettings(nickname="one", define=("A=1",), keep_temporary=True).resolved(DEFAULTS)
        assert control.supervisor.told == [
            (
                "start",
                [ServerSpec(one, "/conf.d/one.conf"), ServerSpec(ServerSettings().resolved(DEFAULTS), None)],
            )
        ]
    assert control.lines.entries == [
        {"level": "info", "event": "control.command", "method": "start", "user": "1001"}
    ]


@pytest.mark.parametrize(
    ("method", "state"),
    [("stop", "stopped"), ("restart", "serving"), ("drain", "draining"), ("undrain", "serving")],
)
async def test_commands_take_ids_or_all(tmp_path, method, state):
    async with (
        running_control(tmp_path, server_status(7), server_status(8)) as control,
        peer_of(control) as peer,
    ):
        assert await outcomes(peer, method, {"ids": [8, 9, 8]}) == [
            (8, state, None),
            (None, None, "no server has the id 9"),
        ]
        rest = [7] if method == "stop" else [7, 8]
        assert await outcomes(peer, method, {"ids": "all"}) == [(each, state, None) for each in rest]
        assert await outcomes(peer, method, {"ids": []}) == []
        assert control.supervisor.told == [(method, [8]), (method, rest), (method, [])]


async def test_reload_hands_on_what_it_was_told(tmp_path):
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        assert await outcomes(peer, "reload", {}) == [(7, "serving", None)]
        await peer.call("reload", {"config_file": "/etc/x", "force": True, "timeout_s": None})
        await peer.call("reload", {"config_file": None})
        assert control.supervisor.told == [
            ("reload", (None, False)),
            ("reload", (Path("/etc/x"), True)),
            ("reload", (None, False)),
        ]


async def test_end_ends_and_refuses_what_comes_after(tmp_path):
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        assert (await peer.call("end"))["result"] == {}
        assert control.supervisor.ended.is_set()
        assert await refused(peer, "restart", {"ids": "all"}) == (
            Code.SHUTTING_DOWN,
            "the supervisor is shutting down",
        )
        assert (await peer.call("status"))["result"]["servers"][0]["id"] == 7
    assert control.lines.events() == ["control.command"]


@pytest.mark.parametrize("fault", [ConfigError("is bad", where="/x:1"), LifecycleError("cannot now")])
async def test_what_cannot_be_carried_out_is_said_why(tmp_path, fault):
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        control.supervisor.raises = fault
        assert await refused(peer, "reload") == (Code.FAILED, str(fault))
        assert "result" in await peer.call("hello")
    entry = control.lines.entries[-1]
    assert (entry["level"], entry["event"], entry["method"]) == ("warning", "control.failed", "reload")
    assert entry["reason"] is fault


async def test_crash_of_a_command_is_logged_and_ends_nothing(tmp_path):
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        control.supervisor.raises = TypeError("a fault of ours")
        assert await refused(peer, "stop", {"ids": [7]}) == (
            Code.INTERNAL_ERROR,
            "internal error; see the supervisor's log",
        )
        assert "result" in await peer.call("hello")
    entry = control.lines.entries[-1]
    assert (entry["level"], entry["event"], entry["method"]) == ("error", "control.crashed", "stop")


# Progress and time-outs.


async def test_progress_comes_in_order_and_before_the_result(tmp_path):
    async with (
        running_control(tmp_path, server_status(7), server_status(8)) as control,
        peer_of(control) as peer,
    ):
        control.supervisor.gate = anyio.Event()
        await peer.request("restart", {"ids": [8, 7], "progress": True}, request_id="r")
        steps = [await peer.receive(), await peer.receive()]
        control.supervisor.gate.set()
        steps += [await peer.receive(), await peer.receive()]
        assert [(step["method"], step["params"]["id"]) for step in steps] == [("progress", "r")] * 4
        assert all("id" not in step for step in steps)
        servers = [step["params"]["server"] for step in steps]
        assert [(server["id"], server["state"]) for server in servers] == [
            (8, "stopping"),
            (7, "stopping"),
            (8, "serving"),
            (7, "serving"),
        ]
        assert (await peer.receive())["id"] == "r"


async def test_without_progress_there_is_the_result_alone(tmp_path):
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        for params in ({"ids": [7]}, {"ids": [7], "progress": False}):
            assert await outcomes(peer, "restart", params) == [(7, "serving", None)]


async def test_requests_of_one_connection_do_not_wait_for_each_other(tmp_path):
    async with (
        running_control(tmp_path, server_status(7), server_status(8)) as control,
        peer_of(control) as peer,
    ):
        gate = control.supervisor.gate = anyio.Event()
        await peer.request("restart", {"ids": [7]}, request_id="slow")
        with anyio.fail_after(60):
            await control.supervisor.began.wait()
        control.supervisor.gate = None
        assert (await peer.call("status", request_id="quick"))["id"] == "quick"
        assert (await peer.call("drain", {"ids": [8]}, request_id="drain"))["id"] == "drain"
        gate.set()
        assert (await peer.receive())["id"] == "slow"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("stop", [(7, "stopping", "is still stopping after 0.05 s")]),
        ("restart", [(7, "stopping", "is still stopping after 0.05 s")]),
        ("drain", [(7, "draining", "is still draining after 0.05 s")]),
        ("undrain", [(7, "serving", None)]),
    ],
)
async def test_command_goes_on_after_its_time_out(tmp_path, method, expected):
    async with (
        running_control(tmp_path, server_status(7, running=1)) as control,
        peer_of(control) as peer,
    ):
        control.supervisor.gate = anyio.Event()
        assert await outcomes(peer, method, {"ids": [7, 9], "timeout_s": 0.05}) == [
            *expected,
            (None, None, "no server has the id 9"),
        ]
        assert control.supervisor.finished == 0
        control.supervisor.gate.set()
        with anyio.fail_after(60):
            while not control.supervisor.finished:
                await peer.call("hello")


def hold_time_out(monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """Let no time-out of a command come before the event."""
    due, wait_step = anyio.Event(), CommandTask.wait_step

    async def wait(action: CommandTask, deadline: float) -> ServerStatus | None:
        step = await wait_step(action, deadline)
        if step is None:
            await due.wait()
        return step

    monkeypatch.setattr(CommandTask, "wait_step", wait)
    return due


async def test_time_out_of_a_start(tmp_path, monkeypatch):
    due = hold_time_out(monkeypatch)
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        control.supervisor.gate = anyio.Event()
        start = control.supervisor.start

        async def start_or_refuse(specs, report):
            return [Outcome(None, already=False, error="nickname"), *await start(specs[1:], report)]

        control.supervisor.start = start_or_refuse
        servers = [{"settings": {"PORT": port}} for port in (1, 2, 3, 4)]
        await peer.request("start", {"servers": servers, "timeout_s": 0, "progress": True})
        for _ in range(3):
            await peer.receive()
        control.supervisor.change(FIRST_ID + 1, state=State.FAILED, reason="no build tree")
        control.supervisor.change(FIRST_ID + 2, state=State.SERVING)
        due.set()
        found = (await peer.receive())["result"]["outcomes"]
        assert [outcome["error"] for outcome in found] == [
            "is not there after 0 s; see the log",
            "is still starting after 0 s",
            "no build tree",
            None,
        ]
        assert [outcome["server"] and outcome["server"]["id"] for outcome in found] == [
            None,
            FIRST_ID,
            FIRST_ID + 1,
            FIRST_ID + 2,
        ]
        # What the peer could not be told is in the log.
        control.supervisor.gate.set()
        await control.lines.wait("control.failed")
    assert control.lines.entries[-1] == {
        "level": "warning",
        "event": "control.failed",
        "method": "start",
        "reason": "nickname",
    }


async def test_time_out_of_a_reload_tells_of_every_server(tmp_path, monkeypatch):
    due = hold_time_out(monkeypatch)
    servers = [server_status(number) for number in (7, 8, 9)]
    async with running_control(tmp_path, *servers) as control, peer_of(control) as peer:
        control.supervisor.gate = anyio.Event()
        await peer.request("reload", {"timeout_s": 0.2, "progress": True})
        for _ in servers:
            await peer.receive()
        control.supervisor.servers[7] = server_status(7, State.BACKING_OFF)
        del control.supervisor.servers[8]
        due.set()
        found = (await peer.receive())["result"]["outcomes"]
        assert {
            outcome["server"]["id"]: (outcome["server"]["state"], outcome["error"]) for outcome in found
        } == {
            7: ("backing-off", "is backing-off"),
            8: ("stopped", None),
            9: ("stopping", "is still stopping after 0.2 s"),
        }


async def test_servers_that_are_gone_at_the_time_out(tmp_path):
    """One has stopped and was not reported; one was asked for once, failed, and was forgotten."""
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:

        async def stop(ids, _report):
            del control.supervisor.servers[7]
            await anyio.sleep_forever()

        async def start(specs, report):
            report(server_status(8, State.FAILED, settings=specs[0].settings, reason="no build tree"))
            await anyio.sleep_forever()

        control.supervisor.stop, control.supervisor.start = stop, start
        assert await outcomes(peer, "stop", {"ids": [7], "timeout_s": 0.05}) == [(7, "stopped", None)]
        params = {"servers": [{"settings": {}}], "timeout_s": 0.05}
        assert await outcomes(peer, "start", params) == [(8, "failed", "no build tree")]


# A real supervisor.


class QuietServer:
    """A server that accepts, and has nobody to serve."""

    service = SimpleNamespace(settings=ServerSettings(tuning={"warmup": False}), release_health={})

    def __init__(self, port: int) -> None:
        self._listener = open_listener(port)
        self.address = address_of(self._listener)
        self._stopped = anyio.Event()

    async def serve(self, *, task_status) -> None:
        with self._listener:
            task_status.started()
            await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    def drain(self) -> None:
        pass

    def undrain(self) -> None:
        pass

    def apply_settings(self, settings) -> None:
        pass

    async def wait_idle(self) -> None:
        pass

    def work(self) -> ServerWork:
        return ServerWork(certificate_expires=SINCE)


class LocalHost:
    """Makes servers that listen and compile nothing."""

    user = "me"

    def __init__(self) -> None:
        self.engine = SimpleNamespace(stap=SimpleNamespace(version="4.8"), sandbox=Sandbox(None))
        self.lines = LogLines()
        self.activity = Activity()
        self.scripts = ScriptOutcomes(self.activity.changes)
        self.warmup = Warmup(
            OwnCompiles(self.engine, None), WarmMemory(Path("/dev/null/warm"), Path("/dev/null/cache")), None
        )

    async def prepare(self, settings, log, *, server_id, last_port=None, shared=None) -> QuietServer:
        if settings.runtime is not None:
            raise ConfigError("is not a directory", where=f"-R {settings.runtime}")
        return QuietServer(settings.port or last_port or 0)


@contextlib.asynccontextmanager
async def real_supervisor(directory: Path, *, auto_end: bool = False) -> AsyncIterator[Path]:
    """Host servers behind a control socket, as the daemon does; yields the socket's path."""
    host = LocalHost()
    supervisor = Supervisor(
        host,
        SavedState(StatFiles(directory), PortMemory(directory / "ports")),
        defaults=DEFAULTS,
        open_log=lambda _path, _style: host.lines.log,
        log=host.lines.log,
        max_compiles=2,
        auto_end=auto_end,
        advertiser=ServerAdvertiser(None, log=host.lines.log),
    )

    async def reload(_config_file, *, force, report):
        spec = ServerSpec(ServerSettings(nickname="configured").resolved(DEFAULTS), "/conf.d/x.conf")
        assert not force
        return await supervisor.reload([spec], report=report)

    async def host_and_serve(*, task_status) -> None:
        async def run_supervisor(*, task_status) -> None:
            await supervisor.run(task_status=task_status)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            await tasks.start(run_supervisor)
            await serve_control(
                path,
                supervisor,
                feed=LiveFeed(supervisor.status, host.activity),
                reload=reload,
                scripts=FakeScripts(),
                defaults=DEFAULTS,
                policy=Policy(os.geteuid(), None),
                log=host.lines.log,
                task_status=task_status,
            )

    path = directory / "control.sock"
    with anyio.fail_after(60):
        async with anyio.create_task_group() as everything:
            await everything.start(host_and_serve)
            yield path
            supervisor.end()


async def test_real_supervisor_from_start_to_end(tmp_path):
    async with real_supervisor(tmp_path) as path, await anyio.connect_unix(path) as stream:
        peer = LinePeer(stream)
        specs = [{"settings": {"NICKNAME": "a"}}, {"settings": {"RUNTIME": "/none"}}, {"settings": {}}]
        reply = await peer.call("start", {"servers": specs})
        good, bad, same = reply["result"]["outcomes"]
        assert (good["error"], good["already"], good["server"]["state"]) == (None, False, "serving")
        assert (bad["error"], bad["server"]["state"]) == ("-R /none: is not a directory", "failed")
        assert (same["error"], same["already"]) == (None, True)
        assert same["server"]["id"] == good["server"]["id"]

        status = (await peer.call("status"))["result"]
        assert [server["nickname"] for server in status["servers"]] == ["a"]
        port = status["servers"][0]["port"]
        async with await anyio.connect_tcp("127.0.0.1", port):
            pass

        (restarted,) = (await peer.call("restart", {"ids": "all"}))["result"]["outcomes"]
        assert (restarted["error"], restarted["server"]["port"]) == (None, port)
        (drained,) = (await peer.call("drain", {"ids": "all"}))["result"]["outcomes"]
        assert (drained["error"], drained["server"]["state"]) == (None, "draining")
        (undrained,) = (await peer.call("undrain", {"ids": "all"}))["result"]["outcomes"]
        assert (undrained["error"], undrained["server"]["state"]) == (None, "serving")

        reloaded = (await peer.call("reload"))["result"]["outcomes"]
        assert [outcome["error"] for outcome in reloaded] == [None] * len(reloaded)
        status = (await peer.call("status"))["result"]
        assert "/conf.d/x.conf" in [server["origin"] for server in status["servers"]]
        assert (await peer.call("end"))["result"] == {}
        assert await peer.wait_closed() == b""


async def test_stop_of_the_last_server_is_answered_though_it_ends_the_supervisor(tmp_path):
    async with real_supervisor(tmp_path, auto_end=True) as path, await anyio.connect_unix(path) as stream:
        peer = LinePeer(stream)
        await peer.call("start", {"servers": [{"settings": {}}]})
        await peer.request("stop", {"ids": "all"})
        message = await peer.receive()
        (outcome,) = message["result"]["outcomes"]
        assert (outcome["server"]["state"], outcome["error"]) == ("stopped", None)
        assert await peer.wait_closed() == b""


def checked(script: str, verdict: Verdict) -> Result:
    return Result(cell=Cell("/srv", script, "6.1"), verdict=verdict, message="error: y", seconds=1.0)


async def test_check_of_scripts_sends_each_result_and_then_all(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        control.supervisor.scripts.results = (checked("a.stp", Verdict.OK), checked("b.stp", Verdict.FAILS))
        await peer.send(
            b'{"jsonrpc":"2.0","id":1,"method":"check_scripts","params":{"releases":["6.1"],"progress":true}}\n'
        )
        steps = [(await peer.receive())["params"]["script"] for _ in range(2)]
        answer = (await peer.receive())["result"]
    assert control.supervisor.scripts.asked == [(["6.1"], False)]
    assert [(step["result"]["script"], step["done"], step["total"]) for step in steps] == [
        ("a.stp", 1, 2),
        ("b.stp", 2, 2),
    ]
    assert [row["verdict"] for row in answer["results"]] == ["ok", "fails"]
    assert [row["text"] for row in answer["differences"]] == ["fails on 6.1: error: y"]


async def test_check_of_scripts_that_cannot_be_is_an_error(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        control.supervisor.scripts.raises = ConfigError("no server serves 5.10")
        assert await refused(peer, "check_scripts") == (Code.FAILED, "no server serves 5.10")


async def test_history_of_scripts(tmp_path):
    async with running_control(tmp_path) as control, peer_of(control) as peer:
        control.supervisor.scripts.remembered = History().with_results([checked("d/a.stp", Verdict.FAILS)])
        found = await peer.call("script_history", {"name": "a"})
        assert found["result"]["cells"][0]["cell"] == ["/srv", "d/a.stp", "6.1"]
        assert (await peer.call("script_history", {"name": "b"}))["result"] == {"cells": []}
