"""The client, against an endpoint, against supervisors that misbehave, and against none."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import threading
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from kit.control import (
    READING_PEER,
    descriptors,
    listening_at,
    peer_of,
    running_control,
)
from kit.supervisor import FIRST_ID, FakeSupervisor, Then, here, server_status, supervisor_status

from stapsrv.control import client
from stapsrv.control.client import SupervisorNotRunning, SyncControlClient
from stapsrv.control.client.sync import connect_error
from stapsrv.control.protocol.jsonrpc import (
    Code,
    encode_error,
    encode_progress,
    encode_result,
    encode_update,
)
from stapsrv.control.protocol.schema import EmptyInfo, HelloInfo, encoded
from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorInfo
from stapsrv.errors import ControlError, StapsrvError

pytestmark = pytest.mark.anyio


class Threaded:
    """The client, each call in a thread: so the tests can serve it meanwhile."""

    def __init__(self, blocking: SyncControlClient) -> None:
        self.blocking = blocking

    @classmethod
    async def connect(cls, path: Path, **options: float) -> Threaded:
        return cls(await anyio.to_thread.run_sync(partial(SyncControlClient, path, **options)))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.blocking.close()

    def __getattr__(self, name: str):
        method = getattr(self.blocking, name)

        async def call(*arguments: object, **options: object) -> object:
            return await anyio.to_thread.run_sync(partial(method, *arguments, **options))

        return call


@pytest.fixture
def dial():
    """Connect to a path."""
    return Threaded.connect


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "control.sock"


STATUS_LINE = encode_result(1, {"servers": []})


# Against an endpoint.


async def test_hello_and_status(tmp_path, dial):
    async with (
        running_control(tmp_path, server_status(7)) as control,
        await dial(control.path) as supervisor,
    ):
        hello = await supervisor.hello()
        assert (hello["pid"], hello["access"]) == (4242, "all")
        assert await supervisor.status() == encoded(control.supervisor.status(), SupervisorInfo)


async def test_start_with_progress(tmp_path, dial):
    async with running_control(tmp_path) as control, await dial(control.path) as supervisor:
        steps: list[tuple] = []
        specs = [{"settings": {"PORT": 5001}}, {"settings": {"NICKNAME": "n"}, "origin": "/conf.d/n.conf"}]
        outcomes = await supervisor.start(
            specs, on_progress=lambda server: steps.append((server["id"], server["state"]))
        )
        assert [outcome["error"] for outcome in outcomes] == [None, None]
        assert [outcome["server"]["settings"]["PORT"] for outcome in outcomes[:1]] == [5001]
        assert steps == [
            (server_id, state) for state in ("starting", "serving") for server_id in (FIRST_ID, FIRST_ID + 1)
        ]
        ((method, told),) = control.supervisor.told
        assert method == "start"
        assert [(spec.settings.nickname, spec.origin) for spec in told] == [
            (None, None),
            ("n", "/conf.d/n.conf"),
        ]


@pytest.mark.parametrize("method", ["stop", "restart", "drain", "undrain"])
async def test_commands(tmp_path, dial, method):
    async with (
        running_control(tmp_path, server_status(7), server_status(8)) as control,
        await dial(control.path) as supervisor,
    ):
        (outcome, absent) = await supervisor.command(method, (8, 9))
        assert (outcome["server"]["id"], outcome["error"]) == (8, None)
        assert absent == {"server": None, "already": False, "error": "no server has the id 9"}
        await supervisor.command(method, "all")
        assert control.supervisor.told == [(method, [8]), (method, [7] if method == "stop" else [7, 8])]


async def test_reload(tmp_path, dial):
    async with (
        running_control(tmp_path, server_status(7)) as control,
        await dial(control.path) as supervisor,
    ):
        steps: list[str] = []
        await supervisor.reload(on_progress=lambda server: steps.append(server["state"]))
        await supervisor.reload(Path("/etc/x"), force=True)
        assert control.supervisor.told == [("reload", (None, False)), ("reload", (Path("/etc/x"), True))]
        assert steps == ["stopping", "serving"]


async def test_end_returns_when_the_supervisor_has_gone(tmp_path, dial):
    async with running_control(tmp_path) as control, await dial(control.path) as supervisor:

        async def go_when_told() -> None:
            await control.supervisor.ended.wait()
            control.scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_when_told)
            await supervisor.end(timeout_s=60)
            assert control.scope.cancel_called


async def test_end_of_a_supervisor_that_stays(tmp_path, dial):
    async with running_control(tmp_path) as control, await dial(control.path) as supervisor:
        with pytest.raises(ControlError) as caught:
            await supervisor.end(timeout_s=0.05)
        assert (caught.value.code, str(caught.value)) == (
            Code.TIMED_OUT,
            "end: the supervisor is still there after 0.05 s",
        )


async def test_refusals_have_the_supervisors_code_and_words(tmp_path, dial):
    async with (
        running_control(tmp_path, peers=[READING_PEER]) as control,
        await dial(control.path) as supervisor,
    ):
        with pytest.raises(ControlError) as caught:
            await supervisor.command("stop", "all")
        assert caught.value.code == Code.NOT_PERMITTED
        assert str(caught.value).startswith("stop: not permitted to user 1002; ask as")
        assert (await supervisor.hello())["access"] == "read"


async def test_refused_connection_says_why(tmp_path, dial):
    async with (
        running_control(tmp_path, connections=0) as control,
        await dial(control.path) as supervisor,
    ):
        with pytest.raises(ControlError) as caught:
            await supervisor.start([{"settings": {"DEFINE": ["x" * 200_000]}}])
        assert (caught.value.code, str(caught.value)) == (
            Code.BUSY,
            "0 connections are open already; try again later",
        )


async def test_time_out_is_the_supervisors_to_tell(tmp_path, dial):
    async with (
        running_control(tmp_path, server_status(7)) as control,
        await dial(control.path) as supervisor,
    ):
        control.supervisor.gate = anyio.Event()
        (outcome,) = await supervisor.command("stop", [7], timeout_s=0.05)
        assert outcome["error"] == "is still stopping after 0.05 s"


async def test_any_method_may_be_called(tmp_path, dial):
    async with running_control(tmp_path) as control, await dial(control.path) as supervisor:
        hello = await supervisor.call("hello", {}, HelloInfo)
        assert hello["protocol"] == 1
        with pytest.raises(ControlError) as caught:
            await supervisor.call("dance", {}, EmptyInfo)
        assert caught.value.code == Code.METHOD_NOT_FOUND


async def test_progress_that_raises_leaves_a_client_that_works(tmp_path, dial):
    async with (
        running_control(tmp_path, server_status(7)) as control,
        await dial(control.path) as supervisor,
    ):

        def broken_pipe(_server: object) -> None:
            raise BrokenPipeError("standard output")

        with pytest.raises(BrokenPipeError, match="standard output"):
            await supervisor.command("restart", [7], on_progress=broken_pipe)
        assert (await supervisor.hello())["pid"] == 4242
        assert (await supervisor.command("restart", [7]))[0]["error"] is None


# What it costs.


def imported_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has after a statement."""
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


HEAVY = {"anyio", "asyncio", "attr", "attrs", "cryptography", "inspect", "structlog", "trio", "zeroconf"}
"""Each takes longer to load than Python takes to start."""


def test_blocking_client_loads_nothing_heavy():
    modules = imported_by("from stapsrv.control.client import SyncControlClient, find_sockets")
    assert "stapsrv.control.client.sync" in modules
    assert modules & HEAVY == set()
    assert {name for name in modules if name.startswith(("stapsrv.supervisor", "stapsrv.compile"))} == set()
    assert "stapsrv.control.server.server" not in modules


def test_client_module_has_nothing_else():
    assert client.SyncControlClient is SyncControlClient
    with pytest.raises(AttributeError, match=r"^module 'stapsrv.control.client' has no attribute 'Nothing'$"):
        client.Nothing  # noqa: B018


# A whole program, as in the documentation.


async def test_script_of_a_blocking_program(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from stapsrv.control.client import SyncControlClient, find_sockets

        for path in find_sockets(Path(sys.argv[1])):
            with SyncControlClient(path) as client:
                for server in client.status()["servers"]:
                    print(path.parent.name, server["id"], server["nickname"], server["state"])
        """
    )
    me = here()
    (tmp_path / me).mkdir()
    async with running_control(tmp_path / me, server_status(7)):
        with anyio.fail_after(60):
            run = await anyio.run_process([sys.executable, "-P", "-c", script, str(tmp_path)])
    assert run.stdout == f"{me} 7 7 serving\n".encode()


async def test_session_of_socat(tmp_path):
    """What the documentation types into socat: lines in, lines out, end of file."""
    async with running_control(tmp_path, server_status(7)) as control, peer_of(control) as peer:
        await peer.send(
            b'{"jsonrpc":"2.0","id":1,"method":"restart","params":{"ids":"all","progress":true}}\n'
        )
        await peer.stream.send_eof()
        lines = [json.loads(line) for line in (await peer.wait_closed()).splitlines()]
    assert [line.get("method", "result") for line in lines] == ["progress", "progress", "result"]


# Against supervisors that misbehave, and against none.


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (
            b"",
            Code.LOST,
            "hello: the connection ended before the supervisor's answer (it was closed)",
        ),
        (
            b'{"jsonrpc":"2.0","id":1,"res',
            Code.LOST,
            "hello: the connection ended before the supervisor's answer (it was closed)",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n",
            Code.INTERNAL_ERROR,
            "the supervisor sent a line that cannot be read: Expecting value: line 1 column 1 (char 0)",
        ),
        (
            encode_result(1, []),
            Code.INTERNAL_ERROR,
            "the supervisor's answer is not understood: result: expected an object, not an array",
        ),
        (
            encode_result(1, {"protocol": 1}),
            Code.INTERNAL_ERROR,
            "the supervisor's answer is not understood: result: the member 'version' is missing",
        ),
        (
            encode_progress(1, {"nickname": 1}),
            Code.INTERNAL_ERROR,
            "the supervisor's answer is not understood: params.server.nickname:"
            " expected a string, not a number",
        ),
        (encode_error(1, ControlError("no", code=-5)), -5, "no"),
        (encode_error(None, ControlError("no", code=-5)), -5, "no"),
        (
            b"x" * (16 * 1024 * 1024 + 1),
            Code.INVALID_REQUEST,
            "a line has more than 16777216 bytes",
        ),
    ],
)
async def test_invalid_answer_is_an_error_with_a_code(path, dial, answer, code, text):
    with listening_at(FakeSupervisor(raw=[answer]), path):
        async with await dial(path) as supervisor:
            with pytest.raises(ControlError) as caught:
                await supervisor.hello()
    assert (caught.value.code, str(caught.value)) == (code, text)


async def test_answers_to_other_calls_are_skipped(path, dial):
    status = encoded(supervisor_status(server_status(7)), SupervisorInfo)
    answer = (
        encode_result(99, {})
        + encode_error(98, ControlError("no", code=-5))
        + encode_progress(97, {"id": "x"})
        + encode_result(1, status | {"later": 1})
    )
    with listening_at(FakeSupervisor(raw=[answer]), path):
        async with await dial(path) as supervisor:
            assert (await supervisor.status())["servers"] == status["servers"]


async def test_call_without_answer_times_out(path, dial):
    with listening_at(FakeSupervisor(raw=[], then=Then.SILENCE), path):
        async with await dial(path) as supervisor:
            with pytest.raises(ControlError) as caught:
                await supervisor.call("hello", {}, HelloInfo, wait_s=0.05)
    assert (caught.value.code, str(caught.value)) == (
        Code.TIMED_OUT,
        "hello: no answer from the supervisor within 0.05 s",
    )


async def test_endless_progress_does_not_extend_the_wait(path, dial):
    step = encode_progress(1, encoded(server_status(7), ServerInfo))
    with listening_at(FakeSupervisor(raw=[step * 20_000], then=Then.SILENCE), path):
        async with await dial(path) as supervisor:
            with pytest.raises(ControlError) as caught:
                await supervisor.call("hello", {}, HelloInfo, wait_s=0.05)
    assert caught.value.code == Code.TIMED_OUT


async def test_missing_socket_means_no_supervisor(path, dial):
    before = descriptors()
    with pytest.raises(SupervisorNotRunning) as caught:
        await dial(path)
    assert isinstance(caught.value, StapsrvError)
    assert str(caught.value) == (
        f"control socket {path}: no supervisor listens there; start one with stap-server start"
    )
    assert descriptors() <= before + 2


async def test_stale_socket_means_no_supervisor(path, dial):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(SupervisorNotRunning):
        await dial(path)


async def test_supervisor_too_busy_to_accept(path, dial):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ControlError) as caught:
            await dial(path, timeout_s=0.1)
    assert (caught.value.code, str(caught.value)) == (
        Code.TIMED_OUT,
        f"control socket {path}: the supervisor is too busy to answer",
    )


async def test_path_longer_than_an_address_is_reached(tmp_path, dial):
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    async with running_control(directory) as control, await dial(control.path) as supervisor:
        assert (await supervisor.hello())["pid"] == 4242
    with pytest.raises(SupervisorNotRunning):
        await dial(tmp_path / ("n" * 120) / "control.sock")


def test_other_failures_to_connect_are_named():
    refused = connect_error(PermissionError(13, "Permission denied"), Path("/s"))
    assert isinstance(refused, ControlError)
    assert (refused.code, str(refused)) == (
        Code.NOT_PERMITTED,
        "control socket /s: you may not connect;"
        " ask as the user that it runs as, or join group stap-server to read its status",
    )
    broken = connect_error(OSError(91, "Protocol wrong type for socket"), Path("/s"))
    assert isinstance(broken, ControlError)
    assert (broken.code, str(broken)) == (Code.LOST, "control socket /s: Protocol wrong type for socket")


# Watching, which needs no thread for the client: the supervisor has one.


def test_watch_yields_the_state_and_then_changes(path):
    with listening_at(FakeSupervisor(server_status(7)), path), SyncControlClient(path) as client:
        watch = client.watch()
        assert next(watch)["servers"]["7"]["state"] == "serving"
        with SyncControlClient(path) as other:
            other.command("drain", [7])
        assert next(watch)["servers"]["7"]["state"] == "draining"


def test_watch_ends_when_its_time_is_over(path):
    with listening_at(FakeSupervisor(), path), SyncControlClient(path) as client:
        assert [update["kind"] for update in client.watch(timeout_s=0.05)] == ["snapshot"]


def test_interrupt_ends_the_watch_of_another_thread(path):
    with listening_at(FakeSupervisor(), path), SyncControlClient(path) as client:
        watch = client.watch()
        next(watch)
        thread = threading.Timer(0, client.interrupt)
        thread.start()
        with pytest.raises(ControlError) as caught:
            next(watch)
        thread.join()
    assert caught.value.code == Code.LOST


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"kind": "news", "at": ""}, 'params.update.kind: expected "snapshot" or "changes", not a string'),
        ([], "params.update: expected an object, not an array"),
    ],
)
def test_update_of_another_shape_is_an_error(path, update, text):
    with listening_at(FakeSupervisor(raw=[encode_update(1, update)]), path):
        with SyncControlClient(path) as client, pytest.raises(ControlError) as caught:
            next(client.watch())
    assert str(caught.value) == f"the supervisor's answer is not understood: {text}"
