"""A supervisor that hosts nothing: it answers on a real control socket and remembers what it was told."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from stapsrv.control.protocol import schema
from stapsrv.control.protocol.jsonrpc import (
    Code,
    decode_request,
    encode_error,
    encode_progress,
    encode_result,
)
from stapsrv.errors import ControlError
from stapsrv.system.unix_socket import address_of

from .control import server_status, supervisor_status

EXPIRES = "2027-02-03T04:05:06.000Z"


def server_info(server_id: int, **facts: object) -> dict[str, object]:
    """What a supervisor says of a server; settings are given as ``settings``."""
    settings = facts.get("settings", {})
    assert isinstance(settings, Mapping)
    return {
        **schema.server_info(server_status(server_id)),
        "nickname": settings.get("NICKNAME", str(server_id)),
        "settings": {},
        "port": settings.get("PORT", 40000),
        "certificate_expires": EXPIRES,
        **facts,
    }


def supervisor_info(user: str, *servers: dict[str, object], pid: int = 4711) -> dict[str, object]:
    """What a supervisor says, but for its sandbox, of which older ones say nothing."""
    info = {**schema.supervisor_info(supervisor_status(pid=pid, user=user)), "servers": list(servers)}
    del info["sandbox"]
    return info


class FakeSupervisor:
    """Starts and stops servers by noting it; each server that it starts serves at once.

    Attributes:
        servers: by id.
        told: each command as ``(method, what)``: the nicknames or releases of wishes, ids, or parameters.
        errors: by nickname, why a server cannot be started.
        refusals: what it answers to the next commands instead of obeying; None hangs up.
        leaves: whether it is gone after a refusal.
        reloaded: outcomes of a reload.
    """

    def __init__(self, user: str, *servers: dict[str, object], pid: int = 4711) -> None:
        self.user = user
        self.pid = pid
        self.servers = {int(str(server["id"])): server for server in servers}
        self.told: list[tuple[str, object]] = []
        self.errors: dict[str, str] = {}
        self.refusals: list[ControlError | None] = []
        self.leaves = False
        self.left = False
        self.reloaded: list[dict[str, object]] = []
        self.next_id = 4194305 + len(servers)

    def answer(self, line: bytes, tell: Callable[[object], None]) -> bytes | None:
        request = decode_request(line)
        if request.method == "status":
            info = supervisor_info(self.user, *self.servers.values(), pid=self.pid)
            return encode_result(request.id, info)
        if self.refusals:
            refusal = self.refusals.pop(0)
            self.left = self.leaves
            return None if refusal is None else encode_error(request.id, refusal)
        outcomes = getattr(self, f"_{request.method}")(request.params, tell)
        return encode_result(request.id, {"outcomes": outcomes})

    def _start(self, params: dict, tell: Callable[[object], None]) -> list[dict[str, object]]:
        self.told.append(("start", [self._called(spec["settings"]) for spec in params["servers"]]))
        return [self._start_one(spec, tell) for spec in params["servers"]]

    def _start_one(self, spec: dict, tell: Callable[[object], None]) -> dict[str, object]:
        settings = spec["settings"]
        same = [
            server for server in self.servers.values() if _identity(server["settings"]) == _identity(settings)
        ]
        if same:
            return {"server": same[0], "already": True, "error": None}
        error = self.errors.get(self._called(settings))
        if error is not None:
            return {"server": None, "already": False, "error": error}
        server = server_info(self.next_id, settings=settings, origin=spec.get("origin"))
        self.servers[self.next_id] = server
        self.next_id += 1
        tell({**server, "state": "starting"})
        tell(server)
        return {"server": server, "already": False, "error": None}

    def _stop(self, params: dict, tell: Callable[[object], None]) -> list[dict[str, object]]:
        ids = list(self.servers) if params["ids"] == "all" else params["ids"]
        self.told.append(("stop", ids))
        outcomes = []
        for server_id in ids:
            server = {**self.servers.pop(server_id), "state": "stopped", "wanted": "down"}
            tell(server)
            outcomes.append({"server": server, "already": False, "error": None})
        return outcomes

    def _restart(self, params: dict, tell: Callable[[object], None]) -> list[dict[str, object]]:
        self.told.append(("restart", params["ids"]))
        for server_id in params["ids"]:
            tell({**self.servers[server_id], "state": "stopping"})
            tell(self.servers[server_id])
        return [self._outcome(server_id) for server_id in params["ids"]]

    def _drain(self, params: dict, tell: Callable[[object], None]) -> list[dict[str, object]]:
        self.told.append(("drain", params["ids"]))
        for server_id in params["ids"]:
            self.servers[server_id] = {**self.servers[server_id], "state": "draining"}
            tell(self.servers[server_id])
        return [self._outcome(server_id) for server_id in params["ids"]]

    def _undrain(self, params: dict, tell: Callable[[object], None]) -> list[dict[str, object]]:
        self.told.append(("undrain", params["ids"]))
        return [self._outcome(server_id) for server_id in params["ids"]]

    def _reload(self, params: dict, tell: Callable[[object], None]) -> list[dict[str, object]]:
        self.told.append(("reload", (params["config_file"], params["force"])))
        return self.reloaded

    def _outcome(self, server_id: int) -> dict[str, object]:
        server = self.servers[server_id]
        error = self.errors.get(str(server["nickname"]))
        return {"server": server, "already": False, "error": error}

    @staticmethod
    def _called(settings: Mapping[str, object]) -> str:
        releases = settings.get("RELEASE", [])
        assert isinstance(releases, list)
        return str(settings.get("NICKNAME", ",".join(releases)))


@contextlib.contextmanager
def listening(supervisor: FakeSupervisor, stat_path: Path) -> Iterator[FakeSupervisor]:
    """Let a supervisor answer at its place below STAT_PATH until the block ends."""
    supervisor_dir = stat_path / supervisor.user
    supervisor_dir.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            os.chown(supervisor_dir, pwd.getpwnam(supervisor.user).pw_uid, -1)
    path = supervisor_dir / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        bind_socket(listener, path)
        listener.listen()
        thread = threading.Thread(target=_accept, args=(listener, supervisor))
        thread.start()
        try:
            yield supervisor
        finally:
            if not supervisor.left:
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=10)
            path.unlink()


def bind_socket(unbound: socket.socket, path: Path) -> None:
    """Bind a socket to a path that may be longer than an address can be."""
    with address_of(path) as address:
        unbound.bind(address)


def _accept(listener: socket.socket, supervisor: FakeSupervisor) -> None:
    while not supervisor.left:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                answer = supervisor.answer(line, partial(_tell, connection, decode_request(line).id))
                if supervisor.left:
                    listener.close()
                if answer is not None:
                    connection.sendall(answer)
                if supervisor.left or answer is None:
                    break


def _tell(connection: socket.socket, request_id: int | str, server: object) -> None:
    connection.sendall(encode_progress(request_id, server))


def _identity(settings: object) -> dict[str, object]:
    assert isinstance(settings, dict)
    return {name: value for name, value in settings.items() if name != "NICKNAME"}


def shutting_down() -> ControlError:
    return ControlError("the supervisor is shutting down", code=Code.SHUTTING_DOWN)


def here() -> str:
    """The user that the tests' supervisors run as."""
    return "stap-server" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def lines(*texts: str) -> str:
    """What a command prints."""
    return "".join(f"{text}\n" for text in texts)
