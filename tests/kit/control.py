"""A control socket with a supervisor behind it that does as it is told, and a peer that speaks in lines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
import attrs
from anyio.abc import SocketStream

from stapsrv.config.settings import HostDefaults, ServerSettings
from stapsrv.control.server.auth import Peer, Policy, read_peer
from stapsrv.control.server.connection import ControlLimits
from stapsrv.control.server.server import serve_control
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.operations import Outcome, Report, ServerSpec
from stapsrv.supervisor.status import ServerStatus, ServerWork, SupervisorStatus
from stapsrv.system.unix_socket import address_of

from .service import LogLines

DEFAULTS = HostDefaults(arch="x86_64", release="6.1.0-test", user="me", log=Path("/log"))
SINCE = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
OWNER, READER_GROUP = 1001, 2001
POLICY = Policy(owner=OWNER, readers=READER_GROUP)
OWN_PEER = Peer(pid=1, uid=OWNER, groups=frozenset({OWNER}))
READING_PEER = Peer(pid=2, uid=1002, groups=frozenset({1002, READER_GROUP}))
STRANGE_PEER = Peer(pid=3, uid=1003, groups=frozenset({1003}))


def server_status(server_id: int, state: State = State.SERVING, **facts: object) -> ServerStatus:
    values = {
        "nickname": str(server_id),
        "settings": ServerSettings(port=server_id).resolved(DEFAULTS),
        "origin": None,
        "wanted": Wanted.UP,
        "since": SINCE,
        "reason": None,
        "port": server_id,
    }
    work = {field.name: facts.pop(field.name) for field in attrs.fields(ServerWork) if field.name in facts}
    return ServerStatus(id=server_id, state=state, work=ServerWork(**work), **(values | facts))


def supervisor_status(*servers: ServerStatus, **facts: object) -> SupervisorStatus:
    values = {
        "pid": 4242,
        "user": "me",
        "version": "0.1",
        "stap_version": "4.8",
        "sandbox": "bubblewrap",
        "containment": "namespace",
        "cgroup": None,
        "since": SINCE,
        "compiles": 0,
        "max_compiles": 2,
    }
    return SupervisorStatus(servers=servers, **(values | facts))


class FakeCommands:
    """A supervisor without servers: they change their states when told, or when the gate opens.

    Attributes:
        servers: by id.
        told: each command as ``(method, argument)``.
        gate: an action is done when it is open; None is open.
        fault: what every command raises.
        ended: set by ``end``.
        finished: counts the actions that are done.
    """

    def __init__(self, *servers: ServerStatus) -> None:
        self.servers = {server.id: server for server in servers}
        self.told: list[tuple[str, object]] = []
        self.gate: anyio.Event | None = None
        self.fault: Exception | None = None
        self.ended = anyio.Event()
        self.finished = 0
        self.began = anyio.Event()

    def status(self) -> SupervisorStatus:
        if isinstance(self.fault, ZeroDivisionError):
            raise self.fault
        return supervisor_status(*self.servers.values())

    async def start(self, specs: Sequence[ServerSpec], report: Report | None = None, /) -> list[Outcome]:
        self._note("start", list(specs))
        ids = range(10, 10 + len(specs))
        for server_id, spec in zip(ids, specs, strict=True):
            self.servers[server_id] = server_status(server_id, State.STARTING, settings=spec.settings)
        return await self._all(list(ids), State.STARTING, State.SERVING, report)

    async def stop(self, ids: Sequence[int], report: Report | None = None, /) -> list[Outcome]:
        self._note("stop", list(ids))
        return await self._all(ids, State.STOPPING, State.STOPPED, report)

    async def restart(self, ids: Sequence[int], report: Report | None = None, /) -> list[Outcome]:
        self._note("restart", list(ids))
        return await self._all(ids, State.STOPPING, State.SERVING, report)

    async def drain(self, ids: Sequence[int], report: Report | None = None, /) -> list[Outcome]:
        self._note("drain", list(ids))
        return await self._all(ids, State.DRAINING, State.DRAINING, report)

    async def undrain(self, ids: Sequence[int], report: Report | None = None, /) -> list[Outcome]:
        self._note("undrain", list(ids))
        return await self._all(ids, State.SERVING, State.SERVING, report)

    async def reload(
        self, config_file: Path | None, /, *, force: bool, report: Report | None
    ) -> list[Outcome]:
        self._note("reload", (config_file, force))
        return await self._all(list(self.servers), State.STOPPING, State.SERVING, report)

    def end(self) -> None:
        self.told.append(("end", None))
        self.ended.set()

    def move(self, server_id: int, state: State, report: Report | None) -> None:
        self.servers[server_id] = attrs.evolve(self.servers[server_id], state=state)
        if report is not None:
            report(self.servers[server_id])

    def _note(self, method: str, argument: object) -> None:
        self.told.append((method, argument))
        self.began.set()
        if self.fault is not None:
            raise self.fault

    async def _all(
        self, ids: Sequence[int], on_the_way: State, done: State, report: Report | None
    ) -> list[Outcome]:
        for server_id in ids:
            self.move(server_id, on_the_way, report)
        if self.gate is not None:
            await self.gate.wait()
        for server_id in ids:
            self.move(server_id, done, report)
        self.finished += 1
        outcomes = [Outcome(self.servers[server_id], already=False, error=None) for server_id in ids]
        if done is State.STOPPED:
            for server_id in ids:
                del self.servers[server_id]
        return outcomes


@attrs.frozen
class Control:
    """A control socket that accepts."""

    path: Path
    commands: FakeCommands
    lines: LogLines
    scope: anyio.CancelScope
    closed: anyio.Event


@contextlib.asynccontextmanager
async def running_control(
    directory: Path,
    *servers: ServerStatus,
    peers: Sequence[Peer | OSError] = (),
    policy: Policy | None = None,
    **limits: float,
) -> AsyncIterator[Control]:
    """Serve until the block ends.

    Args:
        directory: of the socket.
        servers: those that there are.
        peers: who connects, one after the other; the owner when none are left.
        policy: asks the kernel who connects, and judges by this.
        limits: other ones than the default.
    """
    coming = iter(peers)

    def identify(_connection: socket.socket) -> Peer:
        peer = next(coming, OWN_PEER)
        if isinstance(peer, OSError):
            raise peer
        return peer

    commands, lines = FakeCommands(*servers), LogLines()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            control = Control(directory / "control.sock", commands, lines, anyio.CancelScope(), anyio.Event())

            async def serve(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                with control.scope:
                    await serve_control(
                        control.path,
                        commands,
                        reload=commands.reload,
                        defaults=DEFAULTS,
                        policy=policy or POLICY,
                        log=lines.log,
                        limits=ControlLimits(**limits),
                        identify=read_peer if policy else identify,
                        task_status=task_status,
                    )
                control.closed.set()

            await tasks.start(serve)
            yield control
            control.scope.cancel()


class LinePeer:
    """A peer that sends what it likes and reads line by line; every wait ends after 20 seconds."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._data = b""

    async def send(self, data: bytes) -> None:
        with anyio.fail_after(20):
            await self.stream.send(data)

    async def request(self, method: str, params: object = None, *, request_id: object = 1) -> None:
        message = {"jsonrpc": "2.0", "id": request_id, "method": method}
        if params is not None:
            message["params"] = params
        await self.send(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict:
        """Return the next message."""
        with anyio.fail_after(20):
            while b"\n" not in self._data:
                self._data += await self.stream.receive()
        line, _, self._data = self._data.partition(b"\n")
        return json.loads(line)

    async def call(self, method: str, params: object = None, *, request_id: object = 1) -> dict:
        """Send a request and return the next message; who is refused may be so before he could ask."""
        with contextlib.suppress(anyio.BrokenResourceError):
            await self.request(method, params, request_id=request_id)
        return await self.receive()

    async def wait_closed(self) -> bytes:
        """Wait until the other side has closed; returns what came before."""
        with anyio.fail_after(20):
            try:
                while True:
                    self._data += await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return self._data


@contextlib.asynccontextmanager
async def peer_of(control: Control) -> AsyncIterator[LinePeer]:
    async with await anyio.connect_unix(control.path) as stream:
        yield LinePeer(stream)


@contextlib.contextmanager
def scripted_supervisor(path: Path, *answers: bytes, hang_up: bool = True) -> Iterator[None]:
    """Let one client connect; answer each line that it sends with the next of ``answers``, then hang up.

    Without ``hang_up`` the connection stays open until the block ends.
    """
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        with address_of(path) as address:
            listener.bind(address)
        listener.listen()
        listener.settimeout(20)

        def serve() -> None:
            connection, _ = listener.accept()
            # The client may leave in the middle of an answer.
            with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
                connection.settimeout(20)
                for answer in answers:
                    lines.readline()
                    connection.sendall(answer)
                if not hang_up:
                    over.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(20)


def descriptors() -> int:
    """Return how many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def error_of(message: dict, *, request_id: object = 1) -> tuple[int, str]:
    assert message["jsonrpc"] == "2.0"
    assert message["id"] == request_id
    return message["error"]["code"], message["error"]["message"]


async def answers(peer: LinePeer) -> None:
    """Check that a peer is served."""
    assert (await peer.call("hello"))["result"]["pid"] == 4242


def end_with_the_command(control) -> None:
    """Let the end of the command that waits at the gate end everything, in the same turn of the loop."""
    move = control.commands.move

    def end_and_move(server_id, state, report):
        control.scope.cancel()
        move(server_id, state, report)

    control.commands.move = end_and_move
    control.commands.gate.set()
