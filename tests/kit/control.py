"""A control socket with the fake supervisor behind it, and a peer that speaks in lines."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import anyio
import attrs
from anyio.abc import SocketStream, TaskStatus
from anyio.from_thread import start_blocking_portal

from stapsrv.control.protocol.jsonrpc import MAX_REQUEST_BYTES, LineBuffer
from stapsrv.control.server.auth import Peer, Policy, read_peer
from stapsrv.control.server.connection import ControlLimits, receive, send_all
from stapsrv.control.server.server import open_control_socket, serve_control
from stapsrv.observe.feed import LiveFeed

from .service import LogLines
from .supervisor import DEFAULTS, PID, FakeSupervisor, ServerStatus, Then

OWNER, READER_GROUP = 1001, 2001
POLICY = Policy(owner=OWNER, readers=READER_GROUP)
OWN_PEER = Peer(pid=1, uid=OWNER, groups=frozenset({OWNER}))
READING_PEER = Peer(pid=2, uid=1002, groups=frozenset({1002, READER_GROUP}))
STRANGE_PEER = Peer(pid=3, uid=1003, groups=frozenset({1003}))

# Of a slow peer, between two bytes.
_TRICKLE_S = 0.01


@attrs.frozen
class Control:
    """A control socket that accepts."""

    path: Path
    supervisor: FakeSupervisor
    lines: LogLines
    closed: anyio.Event

    @property
    def scope(self) -> anyio.CancelScope:
        """Of the serving."""
        assert self.supervisor.serving is not None
        return self.supervisor.serving


async def serve(
    supervisor: FakeSupervisor,
    path: Path,
    lines: LogLines,
    *,
    identify: Callable[[socket.socket], Peer] = lambda _connection: OWN_PEER,
    policy: Policy = POLICY,
    limits: ControlLimits | None = None,
    task_status: TaskStatus[None],
) -> None:
    """Serve a supervisor at ``path`` until its scope is cancelled."""

    def accept(connection: socket.socket) -> Peer:
        supervisor.connection = connection
        return identify(connection)

    with anyio.CancelScope() as supervisor.serving:
        if supervisor.raw is not None:
            await _serve_raw(supervisor, path, task_status)
            return
        await serve_control(
            path,
            supervisor,
            feed=LiveFeed(supervisor.status, supervisor.activity),
            reload=supervisor.reload,
            scripts=supervisor.scripts,
            defaults=DEFAULTS,
            policy=policy,
            log=lines.log,
            limits=limits,
            identify=accept,
            task_status=task_status,
        )


async def _serve_raw(supervisor: FakeSupervisor, path: Path, task_status: TaskStatus[None]) -> None:
    """Let one client connect, and send it what the supervisor has for it, whatever it asks."""
    assert supervisor.raw is not None
    with open_control_socket(path) as listener:
        task_status.started()
        await anyio.wait_readable(listener)
        connection, _ = listener.accept()
        # The client may leave in the middle of an answer.
        with contextlib.suppress(OSError), connection:
            connection.setblocking(False)
            asked = LineBuffer(MAX_REQUEST_BYTES)
            for answer in supervisor.raw:
                while asked.next_line() is None:
                    data = await receive(connection)
                    if not data:
                        return
                    asked.feed(data)
                await send_all(connection, answer)
            if supervisor.then is Then.SILENCE:
                await anyio.sleep_forever()
            while supervisor.then is Then.TRICKLE:
                await send_all(connection, b" ")
                await anyio.sleep(_TRICKLE_S)


@contextlib.asynccontextmanager
async def running_control(
    directory: Path,
    *servers: ServerStatus,
    peers: Sequence[Peer | OSError] = (),
    policy: Policy | None = None,
    **limits: float,
) -> AsyncIterator[Control]:
    """Serve a supervisor in this event loop until the block ends.

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

    control = Control(directory / "control.sock", FakeSupervisor(*servers), LogLines(), anyio.Event())

    async def serve_until_closed(*, task_status: TaskStatus[None]) -> None:
        await serve(
            control.supervisor,
            control.path,
            control.lines,
            identify=read_peer if policy else identify,
            policy=policy or POLICY,
            limits=ControlLimits(**limits),
            task_status=task_status,
        )
        control.closed.set()

    with anyio.fail_after(100):
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_until_closed)
            yield control
            control.scope.cancel()


@contextlib.contextmanager
def listening(supervisor: FakeSupervisor, stat_path: Path) -> Iterator[FakeSupervisor]:
    """Serve a supervisor at its place below STAT_PATH, in a thread, until the block ends."""
    supervisor_dir = stat_path / supervisor.user
    supervisor_dir.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            os.chown(supervisor_dir, pwd.getpwnam(supervisor.user).pw_uid, -1)
    with listening_at(supervisor, supervisor_dir / "control.sock"):
        yield supervisor


@contextlib.contextmanager
def listening_at(supervisor: FakeSupervisor, path: Path) -> Iterator[None]:
    """Serve a supervisor at ``path``, in a thread, until the block ends; nothing of it may crash."""
    lines = LogLines()
    with start_blocking_portal() as portal:
        served, _ = portal.start_task(partial(serve, supervisor, path, lines))
        try:
            yield
        finally:
            assert supervisor.serving is not None
            portal.call(supervisor.serving.cancel)
            served.result()
    assert "control.crashed" not in lines.events()


class LinePeer:
    """A peer that sends what it likes and reads line by line; every wait ends after a minute."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._data = b""

    async def send(self, data: bytes) -> None:
        with anyio.fail_after(60):
            await self.stream.send(data)

    async def request(self, method: str, params: object = None, *, request_id: object = 1) -> None:
        message = {"jsonrpc": "2.0", "id": request_id, "method": method}
        if params is not None:
            message["params"] = params
        await self.send(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict:
        """Return the next message."""
        with anyio.fail_after(60):
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
        with anyio.fail_after(60):
            try:
                while True:
                    self._data += await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return self._data


@contextlib.asynccontextmanager
async def peer_of(control: Control) -> AsyncIterator[LinePeer]:
    async with await anyio.connect_unix(control.path) as stream:
        yield LinePeer(stream)


def descriptors() -> int:
    """Return how many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def error_of(message: dict, *, request_id: object = 1) -> tuple[int, str]:
    assert message["jsonrpc"] == "2.0"
    assert message["id"] == request_id
    return message["error"]["code"], message["error"]["message"]


async def answers(peer: LinePeer) -> None:
    """Check that a peer is served."""
    assert (await peer.call("hello"))["result"]["pid"] == PID


def end_with_the_command(control) -> None:
    """Let the end of the command that waits at the gate end everything, in the same turn of the loop."""
    move = control.supervisor.move

    def end_and_move(server_id, state, report):
        control.scope.cancel()
        move(server_id, state, report)

    control.supervisor.move = end_and_move
    control.supervisor.gate.set()
