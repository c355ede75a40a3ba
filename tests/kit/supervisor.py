"""A supervisor without servers, and what it says of them; :mod:`kit.control` serves it at a socket."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path

import anyio
import attrs

from stapsrv.compile.activity import Activity
from stapsrv.config.settings import HostDefaults, ServerSettings
from stapsrv.control.protocol.schema import encoded
from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorInfo
from stapsrv.errors import LifecycleError
from stapsrv.scripts.history import Changes, History
from stapsrv.scripts.matrix import Cell, Result, differences
from stapsrv.scripts.report import Report as ScriptReport
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.operations import Outcome, Report, ServerSpec
from stapsrv.supervisor.script_checks import CheckProgress, OnResult
from stapsrv.supervisor.status import ServerStatus, ServerWork, SupervisorStatus

DEFAULTS = HostDefaults(arch="x86_64", release="6.1.0-test", user="me", log=Path("/log"))
SINCE = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
PID = 4242
FIRST_ID = 4194305
# Where a server that was given no port listens.
ASSIGNED_PORT = 40000
EXPIRES = datetime(2027, 2, 3, 4, 5, 6, tzinfo=UTC)


class Fault(Enum):
    """What a command meets instead of being obeyed."""

    # The connection ends without an answer; the supervisor goes on.
    HANG_UP = auto()
    # The connection ends without an answer, and so does the supervisor.
    VANISH = auto()
    # The supervisor ends in the middle of the command, and says so.
    SHUT_DOWN = auto()


class Then(Enum):
    """What comes after raw answers: the end of the connection, nothing, or a blank now and then for ever."""

    HANG_UP = auto()
    SILENCE = auto()
    TRICKLE = auto()


def server_status(server_id: int, state: State = State.SERVING, **facts: object) -> ServerStatus:
    settings = facts.pop("settings", ServerSettings(port=server_id).resolved(DEFAULTS))
    values = {
        "nickname": settings.nickname or str(server_id),
        "settings": settings,
        "origin": None,
        "wanted": Wanted.UP,
        "since": SINCE,
        "reason": None,
        "port": settings.port or ASSIGNED_PORT,
    }
    work = {field.name: facts.pop(field.name) for field in attrs.fields(ServerWork) if field.name in facts}
    return ServerStatus(id=server_id, state=state, work=ServerWork(**work), **(values | facts))


def supervisor_status(*servers: ServerStatus, **facts: object) -> SupervisorStatus:
    values = {
        "pid": PID,
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


class FakeScripts:
    """Checks that were made already: one result for each of a row.

    Attributes:
        results: what a check comes to.
        asked: the releases of each check, and whether it was about changes alone.
        raises: what a check raises.
        remembered: the history.
    """

    def __init__(self, *results: Result) -> None:
        self.results = results
        self.asked: list[tuple[list[str], bool]] = []
        self.raises: Exception | None = None
        self.remembered = History()

    async def check(
        self, releases: Collection[str], *, changed: bool, on_result: OnResult | None = None
    ) -> ScriptReport:
        self.asked.append((list(releases), changed))
        if self.raises is not None:
            raise self.raises
        for done, result in enumerate(self.results, start=1):
            if on_result is not None:
                await on_result(CheckProgress(result, done, len(self.results)))
        return ScriptReport(self.results, tuple(differences({}, self.results)))

    async def history(self, name: str) -> dict[Cell, Changes]:
        return self.remembered.of_script(name)


class FakeSupervisor:
    """A supervisor whose servers are records: they change their states when told, or when the gate opens.

    It stands for :class:`stapsrv.supervisor.supervisor.Supervisor`, and for what reads the configuration.

    Attributes:
        servers: by id; one that is started gets the id after the highest, from FIRST_ID on.
        told: each command as ``(method, argument)``.
        gate: an action is done when it is open; None is open.
        raises: what every command raises, and ``status`` too where it is a ZeroDivisionError.
        faults: what the next commands meet, one each, before anything is noted.
        errors: by nickname or releases, why a server cannot be started, or is not as wanted afterwards.
        since: when it began, which is anew with a forced reload.
        reloaded: the outcomes of another reload; None restarts every server.
        began: set by the first command.
        ended: set by ``end``.
        scripts: what checks its collections.
        finished: counts the actions that are done.
        activity: its requests; its changes are counted there.
        raw: what it sends for each line that it reads, instead of speaking the protocol, and ``then``.
        connection: the last that was accepted, set by who serves it.
        serving: the scope of who serves it.
    """

    def __init__(
        self,
        *servers: ServerStatus,
        user: str = "me",
        pid: int = PID,
        raw: Sequence[bytes] | None = None,
        then: Then = Then.HANG_UP,
    ) -> None:
        self.servers = {server.id: server for server in servers}
        self.user = user
        self.pid = pid
        self.since = SINCE
        self.raw = raw
        self.then = then
        self.activity = Activity()
        self.told: list[tuple[str, object]] = []
        self.gate: anyio.Event | None = None
        self.raises: Exception | None = None
        self.faults: list[Fault] = []
        self.errors: dict[str, str] = {}
        self.reloaded: list[Outcome] | None = None
        self.scripts = FakeScripts()
        self.began = anyio.Event()
        self.ended = anyio.Event()
        self.finished = 0
        self.connection: socket.socket | None = None
        self.serving: anyio.CancelScope | None = None

    @property
    def told_names(self) -> list[tuple[str, object]]:
        """``told``, with servers to start by nickname or releases."""
        return [
            (method, [_name(spec.settings) for spec in argument] if method == "start" else argument)
            for method, argument in self.told
        ]

    def change(self, server_id: int, **facts: object) -> None:
        """Change what is on record of a server."""
        server = self.servers[server_id]
        work = {name: facts.pop(name) for name in list(facts) if hasattr(server.work, name)}
        self.servers[server_id] = attrs.evolve(server, work=attrs.evolve(server.work, **work), **facts)
        self.activity.changes.note()

    def status(self) -> SupervisorStatus:
        if isinstance(self.raises, ZeroDivisionError):
            raise self.raises
        return supervisor_status(*self.servers.values(), user=self.user, pid=self.pid, since=self.since)

    async def start(self, specs: Sequence[ServerSpec], report: Report | None = None, /) -> list[Outcome]:
        await self._begin("start", list(specs))
        outcomes: list[Outcome | int] = []
        for spec in specs:
            same = [
                server
                for server in self.servers.values()
                if server.settings.identity(DEFAULTS) == spec.settings.identity(DEFAULTS)
            ]
            error = self.errors.get(_name(spec.settings))
            if same:
                outcomes.append(Outcome(same[0], already=True, error=None))
            elif error is not None:
                outcomes.append(Outcome(None, already=False, error=error))
            else:
                server_id = max([FIRST_ID - 1, *self.servers]) + 1
                self.servers[server_id] = server_status(
                    server_id, State.STARTING, settings=spec.settings, origin=spec.origin
                )
                outcomes.append(server_id)
        ids = [outcome for outcome in outcomes if isinstance(outcome, int)]
        done = iter(await self._all(ids, State.STARTING, State.SERVING, report))
        return [next(done) if isinstance(outcome, int) else outcome for outcome in outcomes]

    async def stop(self, ids: Sequence[int], report: Report | None = None, /) -> list[Outcome]:
        await self._begin("stop", list(ids))
        outcomes = await self._all(ids, State.STOPPING, State.STOPPED, report)
        for server_id in ids:
            del self.servers[server_id]
        return outcomes

    async def restart(self, ids: Sequence[int], report: Report | None = None, /) -> list[Outcome]:
        await self._begin("restart", list(ids))
        return await self._all(ids, State.STOPPING, State.SERVING, report)

    async def drain(self, ids: Sequence[int], report: Report | None = None, /) -> list[Outcome]:
        await self._begin("drain", list(ids))
        return await self._all(ids, State.DRAINING, State.DRAINING, report)

    async def undrain(self, ids: Sequence[int], report: Report | None = None, /) -> list[Outcome]:
        await self._begin("undrain", list(ids))
        return await self._all(ids, State.SERVING, State.SERVING, report)

    async def reload(
        self, config_file: Path | None, /, *, force: bool, report: Report | None
    ) -> list[Outcome]:
        await self._begin("reload", (config_file, force))
        if force:
            self.since += timedelta(seconds=1)
            stopped = await self._all(list(self.servers), State.STOPPING, State.STOPPED, report)
            self.servers.clear()
            return stopped
        if self.reloaded is not None:
            return self.reloaded
        return await self._all(list(self.servers), State.STOPPING, State.SERVING, report)

    def end(self) -> None:
        self.told.append(("end", None))
        self.ended.set()

    def move(self, server_id: int, state: State, report: Report | None) -> None:
        wanted = Wanted.DOWN if state is State.STOPPED else self.servers[server_id].wanted
        self.servers[server_id] = attrs.evolve(self.servers[server_id], state=state, wanted=wanted)
        self.activity.changes.note()
        if report is not None:
            report(self.servers[server_id])

    async def _begin(self, method: str, argument: object) -> None:
        if self.faults:
            await self._meet(self.faults.pop(0))
        self.told.append((method, argument))
        self.began.set()
        if self.raises is not None:
            raise self.raises

    async def _meet(self, fault: Fault) -> None:
        assert self.connection is not None, "nobody serves it"
        assert self.serving is not None
        if fault is not Fault.SHUT_DOWN:
            self.connection.shutdown(socket.SHUT_RDWR)
        if fault is not Fault.HANG_UP:
            self.serving.cancel()
            await anyio.sleep_forever()
        raise LifecycleError("the connection has ended")

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
        servers = [self.servers[server_id] for server_id in ids]
        return [Outcome(each, already=False, error=self.errors.get(each.nickname)) for each in servers]


def _name(settings: ServerSettings) -> str:
    return settings.nickname or ",".join(settings.releases)


# What clients read.


def server_info(server_id: int, **facts: object) -> dict[str, object]:
    """What a supervisor says of a server; settings are given as ``settings``."""
    settings = facts.get("settings", {})
    assert isinstance(settings, Mapping)
    return {
        **encoded(server_status(server_id, certificate_expires=EXPIRES), ServerInfo),
        "nickname": settings.get("NICKNAME", str(server_id)),
        "settings": {},
        "port": settings.get("PORT", ASSIGNED_PORT),
        **facts,
    }


def supervisor_info(user: str, *servers: dict[str, object]) -> dict[str, object]:
    """What a supervisor says, but for its sandbox, of which older ones say nothing."""
    info = {**encoded(supervisor_status(user=user), SupervisorInfo), "servers": list(servers)}
    del info["sandbox"]
    return info


def here() -> str:
    """The user that the tests' supervisors run as."""
    return "stap-server" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def lines(*texts: str) -> str:
    """What a command prints."""
    return "".join(f"{text}\n" for text in texts)
