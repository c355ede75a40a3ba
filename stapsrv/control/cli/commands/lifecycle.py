"""Carries out a command on servers: plans it, and executes the plan, all users side by side.

Everything that ``stap-server`` does but ``status``, ``check`` and ``help`` is here. Servers stop first, so
that those that start find their ports free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from stapsrv.config.files import Assignment, decode_config, scan
from stapsrv.control.cli.console import NONE_RUNS, PROGRAM, title
from stapsrv.control.cli.execute import Executor, failure
from stapsrv.control.cli.inventory import FoundServer, Inventory
from stapsrv.control.cli.invocation import Action, Invocation
from stapsrv.control.cli.plan import Operation, Plan, Target, make_plan
from stapsrv.control.cli.report import Reporter, Verb
from stapsrv.control.cli.supervisors import ALREADY_DOWN, Supervisors
from stapsrv.control.client.accounts import runnable_account
from stapsrv.control.protocol.schema import settings_info
from stapsrv.errors import ConfigError

if TYPE_CHECKING:
    from stapsrv.control.cli.targets import RunningServer


def line_of(file: str, variable: str, value: str | None = None) -> str:
    """Return ``FILE:LINE`` of the last assignment to a variable, if possible of ``value``; else ``FILE``."""
    try:
        text = decode_config(Path(file).read_bytes(), where=file)
    except (OSError, ConfigError):
        return file
    assignments = [found for found in scan(text, where=file) if isinstance(found, Assignment)]
    found = [assignment for assignment in assignments if assignment.variable == variable]
    found = [assignment for assignment in found if assignment.value == value] or found
    return f"{file}:{found[-1].line}" if found else file


_FAILED = 1
_STOPPED_NOTHING = f"{Verb.STOP} {PROGRAM}: OK"
# These start a supervisor, which takes over its user's orphaned servers: they count as its own.
_TAKES_UP = {Action.START, Action.RESTART, Action.RELOAD, Action.FORCE_RELOAD}
# How to report an operation that is refused; all others are starts.
_VERBS = {Operation.STOP: Verb.STOP, Operation.DRAIN: Verb.DRAIN, Operation.UNDRAIN: Verb.UNDRAIN}


def run_command(invocation: Invocation, reporter: Reporter, environ: Mapping[str, str]) -> int:
    """Carry out an action on servers and report it; return the exit status."""
    command = _Command(Inventory(invocation, environ), reporter)
    reloads = invocation.action in {Action.RELOAD, Action.FORCE_RELOAD} and not invocation.specifications
    status = command.reload() if reloads else command.act()
    reporter.finish(status)
    return status


class _Command:
    def __init__(self, inventory: Inventory, reporter: Reporter) -> None:
        self._inventory = inventory
        self._invocation = inventory.invocation
        self._reporter = reporter
        self._executor = Executor(inventory, Supervisors(inventory, reporter.step), reporter)

    def act(self) -> int:
        """Carry out the plan; return the exit status."""
        self._executor.complain(*self._inventory.problems)
        plan = self._select()
        warnings = plan.warnings
        if self._invocation.use_password and any(map(self._inventory.owns, self._inventory.supervisors)):
            # A password is handed over at the start, through an inherited descriptor.
            unused = "-P is for a supervisor that is started; yours runs and keeps the password it has"
            warnings = (*warnings, unused)
        for warning in warnings:
            self._reporter.complain(f"warning: {warning}")
        self._say_if_none_runs(plan)
        targets = [target for target in plan.targets if self._is_to_be_done(target)]
        changed = [target for target in targets if self._changes_settings(target)]
        kept = [target for target in _with(Operation.RESTART, targets) if target not in changed]
        # All that stops comes first: what starts may want the same port.
        down = self._executor.stop([*_with(Operation.STOP, targets), *changed])
        self._executor.restart(kept)
        starting = [target for target in targets if target.operation in {Operation.START, Operation.KEEP}]
        # A server that did not stop keeps its settings: a second one beside it was not asked for.
        self._executor.start([*starting, *(target for target in changed if target in down)])
        self._executor.drain(_with(Operation.DRAIN, targets), undo=False)
        self._executor.drain(_with(Operation.UNDRAIN, targets), undo=True)
        return _FAILED if self._executor.failed else plan.exit_status

    def reload(self) -> int:
        """Have each supervisor apply the configuration; return the exit status."""
        inventory, executor = self._inventory, self._executor
        force = self._invocation.action is Action.FORCE_RELOAD
        executor.complain(*inventory.problems, *inventory.faults)
        self._say_if_none_runs(None)
        configured = self._configured_users()
        own = [supervisor for supervisor in inventory.supervisors if inventory.owns(supervisor)]
        # Where no server is configured, force stops them all.
        leaving = [supervisor for supervisor in own if force and supervisor["user"] not in configured]
        executor.reload([supervisor["user"] for supervisor in own if supervisor not in leaving], anew=force)
        hosted = [server for server in inventory.found if server.supervisor in leaving]
        executor.stop([Target(operation=Operation.STOP, server=server) for server in hosted])
        absent = configured.keys() - {supervisor["user"] for supervisor in own}
        if force or (absent and not inventory.files):
            # Manual page, force-reload: as if start was specified.
            self._start_configured()
        else:
            errors = {user: self._user_error(user, configured[user]) for user in sorted(absent)}
            executor.complain(*filter(None, errors.values()))
            executor.reload([user for user, error in errors.items() if error is None])
        return _FAILED if executor.failed else 0

    def _start_configured(self) -> None:
        inventory = self._inventory
        if inventory.nothing_usable:
            return
        start = self._invocation._replace(action=Action.START)
        plan = make_plan(start, running=[], configured=inventory.configured, host=inventory.host)
        for warning in plan.warnings:
            self._reporter.complain(f"warning: {warning}")
        self._executor.start([target for target in plan.targets if self._is_to_be_done(target)])

    def _configured_users(self) -> dict[str, str | None]:
        """Return the users of the configured servers, each with a file; or the default user."""
        inventory = self._inventory
        users: dict[str, str | None] = {} if inventory.files else {inventory.default_user: None}
        for server in inventory.configured:
            users.setdefault(server.settings.user or inventory.default_user, server.where)
        return users

    def _select(self) -> Plan:
        inventory, action = self._inventory, self._invocation.action
        specified = bool(self._invocation.specifications)
        running: list[RunningServer] = [server for server in inventory.found if server.own or specified]
        like_start = action is Action.START or (action is Action.RESTART and not running)
        means_configured = like_start and not specified
        if means_configured:
            self._executor.complain(*inventory.faults)
            if inventory.nothing_usable:
                return Plan(action, ())
        if action is Action.STOP or (action in _TAKES_UP and specified):
            running += inventory.own_orphaned_servers
        running = inventory.without_namesakes(running)
        plan = make_plan(
            self._invocation,
            running=running,
            configured=inventory.configured if means_configured or inventory.names_unknown(running) else [],
            host=inventory.host,
        )
        return attrs.evolve(plan, targets=tuple(map(self._refuse_if_file_is_bad, plan.targets)))

    def _refuse_if_file_is_bad(self, target: Target) -> Target:
        """Refuse a new server whose nickname may be that of an unusable file."""
        nickname = target.settings.nickname if target.settings is not None else None
        if target.operation is not Operation.START or target.where is not None or nickname is None:
            return target
        fault = self._inventory.fault_of(nickname)
        if fault is None:
            return target
        return attrs.evolve(target, operation=Operation.REFUSE, problem=fault, exit_status=_FAILED)

    def _say_if_none_runs(self, plan: Plan | None) -> None:
        """Print what the original prints when there is nothing to stop; a reload has no plan."""
        action = self._invocation.action
        none_runs = not any(server.own for server in self._inventory.found)
        if none_runs and action in {Action.RESTART, Action.FORCE_RELOAD}:
            if not self._invocation.specifications:
                self._reporter.remark(_STOPPED_NOTHING)
        elif plan is None or plan.targets or action is Action.START:
            return
        elif action is Action.STOP:
            self._reporter.remark(_STOPPED_NOTHING)
        else:
            self._reporter.remark(NONE_RUNS, done=True)

    def _is_to_be_done(self, target: Target) -> bool:
        """Whether there is something left to do; if not, report the outcome."""
        match target.operation:
            case Operation.REFUSE if target.settings is None:
                self._reporter.remark(target.problem or "", done=False)
                return False
            case Operation.REFUSE:
                error = target.problem
            case Operation.ABSENT:
                self._report_absent(target)
                return False
            case Operation.START:
                error = self._user_error(self._executor.user_of(target), target.where)
            case _:
                error = self._not_own(target)
        if error is not None:
            self._executor.report(_VERBS.get(target.operation, Verb.START), target, failure(error))
        return error is None

    def _report_absent(self, target: Target) -> None:
        """Report a server that does not run; to stop it is a success."""
        if self._invocation.action is Action.STOP:
            self._executor.report(Verb.STOP, target, ALREADY_DOWN)
        elif target.settings is not None:
            line = f"{title(settings_info(target.settings))} is not running"
            self._reporter.remark(line, done=target.exit_status == 0)

    def _not_own(self, target: Target) -> str | None:
        if not isinstance(target.server, FoundServer) or target.server.own:
            return None
        owner = target.server.supervisor["user"]
        return f"is a server of user {owner}; run stap-server as that user, or as root"

    def _user_error(self, user: str, where: str | None) -> str | None:
        """Return why this user may start nothing as ``user``; ``where`` is the file that names it."""
        place = None if where is None else line_of(where, "USER")
        try:
            runnable_account(user, self._inventory.environ, where=place)
        except ConfigError as exc:
            return str(exc)
        return None

    def _changes_settings(self, target: Target) -> bool:
        """Whether a restart changes settings, so that a new server replaces this one."""
        if target.operation is not Operation.RESTART or target.server is None:
            return False
        return target.settings != target.server.settings.resolved(self._inventory.host.defaults)


def _with(operation: Operation, targets: Sequence[Target]) -> list[Target]:
    return [target for target in targets if target.operation is operation]
