"""The methods of the control protocol: a request in, a result or an error out. No sockets.

Commands run in tasks of their own (:mod:`stapsrv.control.server.task`), so that they go on when the client
leaves or stops waiting.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

import anyio
import attrs
from anyio.abc import TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.files import unwritable_reason
from stapsrv.config.settings import HostDefaults
from stapsrv.control.protocol import schema
from stapsrv.control.protocol.jsonrpc import FEATURES, PROTOCOL_VERSION, Code, Request
from stapsrv.control.protocol.live_fields import UpdateInfo
from stapsrv.control.protocol.schema import ActionInfo, ActionParams, EmptyInfo, OutcomeInfo, encoded, invalid
from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorInfo
from stapsrv.control.protocol.validation import ShapeError, checked, shown
from stapsrv.control.server.auth import Access
from stapsrv.control.server.task import CommandTask
from stapsrv.control.server.watching import Watches
from stapsrv.errors import ControlError, StapsrvError
from stapsrv.observe.feed import LiveFeed
from stapsrv.scripts.history import Changes, History, encode_history
from stapsrv.scripts.matrix import Cell
from stapsrv.scripts.report import Report as ScriptReport
from stapsrv.scripts.report import report_json, result_json
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.operations import Outcome, Report, ServerSpec
from stapsrv.supervisor.script_checks import CheckProgress, OnResult
from stapsrv.supervisor.status import ServerStatus

if TYPE_CHECKING:
    from stapsrv.supervisor.supervisor import Supervisor

# A day: nobody means a longer wait.
MAX_TIMEOUT_S = 86_400.0

# With a timeout of 0 the outcome still says what was started, which takes a few turns of the loop.
_LEAST_WAIT_S = 0.1

_REPORTED = ("results", "differences")

_Params = TypeVar("_Params")


class Reload(Protocol):
    """Reads the configuration and applies it."""

    async def __call__(
        self, config_file: Path | None, /, *, force: bool, report: Report | None
    ) -> Sequence[Outcome]:
        """Make the configured servers what the configuration says now, or raise StapsrvError."""


class Scripts(Protocol):
    """Checks the collections of scripts."""

    async def check(
        self, releases: Collection[str], *, changed: bool, on_result: OnResult | None = None
    ) -> ScriptReport:
        """Compile all scripts for all releases, or those named, or raise StapsrvError."""

    async def history(self, name: str) -> Mapping[Cell, Changes]:
        """Return what is remembered of the scripts of a name."""


class Caller(NamedTuple):
    """The user who sent a request, and that user's access."""

    user: str
    access: Access


@attrs.frozen
class Call:
    """A request and who sent it.

    ``notify`` tells the caller of a server's new status, ``update`` what a watch has seen; both may wait.
    """

    _request: Request
    caller: Caller
    notify: Callable[[ServerInfo], Awaitable[None]]
    update: Callable[[UpdateInfo], Awaitable[None]]
    notify_script: Callable[[schema.ScriptProgressInfo], Awaitable[None]]  # the same, of a script

    @property
    def method(self) -> str:
        """The name of the method."""
        return self._request.method

    def params(self, shape: type[_Params]) -> _Params:
        """Return the parameters, checked against ``shape``; raises ControlError (INVALID_PARAMS)."""
        try:
            return checked(self._request.params, shape, name="params", exact=True)
        except ShapeError as exc:
            raise invalid(str(exc)) from exc


class RpcHandlers:
    """Dispatches requests to their methods; commands run in ``tasks``, which outlives all connections."""

    def __init__(
        self,
        commands: Supervisor,
        *,
        feed: LiveFeed,
        reload: Reload,
        scripts: Scripts,
        defaults: HostDefaults,
        tasks: TaskGroup,
        log: Log,
    ) -> None:
        self._commands = commands
        self._watches = Watches(feed)
        self._reload_configured = reload
        self._scripts = scripts
        self._defaults = defaults
        self._tasks = tasks
        self._log = log
        self._ending = False
        self._queries: dict[str, Callable[[Call], object]] = {"hello": self._hello, "status": self._status}
        self._streams: dict[str, Callable[[Call], Awaitable[object]]] = {"watch": self._watch}
        self._actions: dict[str, Callable[[Call], Awaitable[object]]] = {
            "start": self._start,
            "stop": lambda call: self._command(call, commands.stop),
            "restart": lambda call: self._command(call, commands.restart),
            "drain": lambda call: self._command(call, commands.drain),
            "undrain": lambda call: self._command(call, commands.undrain),
            "reload": self._reload,
            "check_scripts": self._check_scripts,
            "script_history": self._script_history,
            "end": self._end,
        }

    async def call(self, call: Call) -> object:
        """Carry out a request and return its result, ready for JSON.

        Raises:
            ControlError: it cannot be done; the code says why, INVALID_PARAMS for bad parameters.

        Cancellation: a command that has begun goes on.
        """
        query = self._queries.get(call.method)
        if query is not None:
            return query(call)
        stream = self._streams.get(call.method)
        if stream is not None:
            return await stream(call)
        action = self._actions.get(call.method)
        if action is None:
            raise ControlError(
                f"unknown method {shown(call.method)}",
                code=Code.METHOD_NOT_FOUND,
                remedy=f"the methods are {', '.join([*self._queries, *self._streams, *self._actions])}",
            )
        user = call.caller.user
        if call.caller.access < Access.ALL:
            self._log.warning("control.refused", user=user, reason=f"{call.method} is not permitted")
            raise ControlError(
                f"{call.method}: not permitted to user {user}",
                code=Code.NOT_PERMITTED,
                remedy="ask as the user that the supervisor runs as, or as root",
            )
        if self._ending:
            raise ControlError("the supervisor is shutting down", code=Code.SHUTTING_DOWN)
        return await action(call)

    def _hello(self, call: Call) -> schema.HelloInfo:
        call.params(EmptyInfo)
        status = self._commands.status()
        return {
            "protocol": PROTOCOL_VERSION,
            "version": status.version,
            "pid": status.pid,
            "user": status.user,
            "access": call.caller.access.name.lower(),
            "features": list(FEATURES),
        }

    def _status(self, call: Call) -> SupervisorInfo:
        call.params(EmptyInfo)
        return encoded(self._commands.status(), SupervisorInfo)

    async def _watch(self, call: Call) -> EmptyInfo:
        timeout_s = _checked_timeout(call.params(schema.WatchParams).get("timeout_s"))
        await self._watches.watch(call.update, timeout_s=timeout_s)
        return {}

    async def _start(self, call: Call) -> ActionInfo:
        params = call.params(schema.StartParams)
        specs = [
            self._parse_spec(info, where=f"params.servers[{index}]")
            for index, info in enumerate(params["servers"])
        ]

        def asked_for(now: dict[int, ServerStatus]) -> list[ServerStatus | None]:
            servers = {server.settings.identity(self._defaults): server for server in now.values()}
            return [servers.get(spec.settings.identity(self._defaults)) for spec in specs]

        return await self._act(call, params, partial(self._commands.start, specs), asked_for)

    async def _command(
        self, call: Call, command: Callable[[Sequence[int], Report | None], Awaitable[Sequence[Outcome]]]
    ) -> ActionInfo:
        params = call.params(schema.IdsParams)
        before = {server.id: server for server in self._commands.status().servers}
        ids = list(before) if params["ids"] == "all" else list(dict.fromkeys(params["ids"]))
        known = [server_id for server_id in ids if server_id in before]

        def asked_for(now: dict[int, ServerStatus]) -> list[ServerStatus]:
            return [now.get(server_id) or _gone(before[server_id]) for server_id in known]

        done = await self._act(call, params, partial(command, known), asked_for)
        outcomes = {server["id"]: outcome for outcome in done["outcomes"] if (server := outcome["server"])}
        return {"outcomes": [outcomes.get(server_id) or _absent(server_id) for server_id in ids]}

    async def _reload(self, call: Call) -> ActionInfo:
        params = call.params(schema.ReloadParams)
        text = params.get("config_file")
        config_file = None if text is None else Path(_one_line(text, where="params.config_file"))
        if config_file is not None and not config_file.is_absolute():
            raise invalid(f"params.config_file: expected an absolute path, not {shown(str(text))}")
        force = params.get("force", False)
        return await self._act(
            call,
            params,
            lambda report: self._reload_configured(config_file, force=force, report=report),
            lambda now: now.values(),
        )

    async def _check_scripts(self, call: Call) -> schema.ScriptReportInfo:
        """Check scripts for as long as the caller is there."""
        params = call.params(schema.ScriptCheckParams)
        self._log.info("control.command", method=call.method, user=call.caller.user)

        async def notify(step: CheckProgress) -> None:
            result = cast(schema.ScriptResultInfo, result_json(step.result))
            await call.notify_script({"result": result, "done": step.done, "total": step.total})

        with _as_control_error():
            report = await self._scripts.check(
                params.get("releases", []),
                changed=params.get("changed", False),
                on_result=notify if params.get("progress", False) else None,
            )
        return cast(schema.ScriptReportInfo, {name: report_json(report)[name] for name in _REPORTED})

    async def _script_history(self, call: Call) -> schema.ScriptHistoryInfo:
        params = call.params(schema.ScriptHistoryParams)
        with _as_control_error():
            found = await self._scripts.history(params["name"])
        return cast(schema.ScriptHistoryInfo, {"cells": encode_history(History(found))["cells"]})

    async def _end(self, call: Call) -> EmptyInfo:
        call.params(EmptyInfo)
        self._log.info("control.command", method=call.method, user=call.caller.user)
        self._ending = True
        self._commands.end()
        return {}

    async def _act(
        self,
        call: Call,
        params: ActionParams,
        command: Callable[[Report], Awaitable[Sequence[Outcome]]],
        asked_for: Callable[[dict[int, ServerStatus]], Iterable[ServerStatus | None]],
    ) -> ActionInfo:
        """Run a command and send its progress; after the timeout tell of the servers that it is about.

        ``asked_for`` picks them, None for one that is not there, out of all that there are, by id.
        """
        timeout_s = _checked_timeout(params.get("timeout_s"))
        self._log.info("control.command", method=call.method, user=call.caller.user)
        action = CommandTask(command, self._log.bind(method=call.method))
        self._tasks.start_soon(action.run)
        try:
            deadline = anyio.current_time() + max(timeout_s, _LEAST_WAIT_S)
            while (step := await action.wait_step(deadline)) is not None:
                if params.get("progress", False):
                    await call.notify(encoded(step, ServerInfo))
        finally:
            action.leave()
        if action.ended:
            outcomes = action.outcomes
        else:
            gone = {server_id: _gone(server) for server_id, server in action.latest.items()}
            there = {server.id: server for server in self._commands.status().servers}
            outcomes = [_unfinished(server, call.method, timeout_s) for server in asked_for(gone | there)]
        return {"outcomes": [encoded(outcome, OutcomeInfo) for outcome in outcomes]}

    def _parse_spec(self, info: schema.ServerSpecInfo, *, where: str) -> ServerSpec:
        settings = schema.settings_from(info["settings"], where=f"{where}.settings")
        origin = info.get("origin")
        if origin is not None:
            _one_line(origin, where=f"{where}.origin")
        return ServerSpec(settings.resolved(self._defaults), origin)


@contextlib.contextmanager
def _as_control_error() -> Iterator[None]:
    try:
        yield
    except StapsrvError as exc:
        raise ControlError(str(exc), code=Code.FAILED) from exc
    except OSError as exc:
        raise ControlError(f"what is remembered cannot be read: {exc.strerror}", code=Code.FAILED) from exc


def _checked_timeout(timeout_s: float | None) -> float:
    if timeout_s is None:
        return math.inf
    if not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise invalid(
            f"params.timeout_s: expected seconds, from 0 to {MAX_TIMEOUT_S:g}, or null for no limit"
        )
    return timeout_s


def _one_line(text: str, *, where: str) -> str:
    """Return a text that fits into a line of a settings file."""
    reason = unwritable_reason(text)
    if reason is not None:
        raise invalid(f"{where}: {shown(text)} {reason}")
    return text


def _absent(server_id: int) -> OutcomeInfo:
    return {"server": None, "already": False, "error": f"no server has the id {server_id}"}


def _gone(server: ServerStatus) -> ServerStatus:
    return server if server.state is State.FAILED else attrs.evolve(server, state=State.STOPPED)


def _unfinished(server: ServerStatus | None, method: str, waited_s: float) -> Outcome:
    """Return the outcome of a server whose command has not finished in time."""
    if server is None:
        return Outcome(None, already=False, error=f"is not there after {waited_s:g} s; see the log")
    error = None
    outstanding = server.work.running + server.work.queued
    draining = method == "drain" and server.state is State.DRAINING and outstanding > 0
    if draining or server.state in {State.STARTING, State.STOPPING}:
        error = f"is still {server.state.value} after {waited_s:g} s"
    elif server.state in {State.FAILED, State.BACKING_OFF}:
        error = server.reason or f"is {server.state.value}"
    return Outcome(server, already=False, error=error)
