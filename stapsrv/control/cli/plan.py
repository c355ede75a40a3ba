"""Decides which servers a command means and what happens to each. Pure.

The specification is the manual page, also where the original of 4.8 departs from it: that forgets the port
and the nickname of a server named by ``-n`` or ``-p``, and takes a command line for one server.

**Names.** ``-n`` and ``-p`` mean that very server with all its settings, unless what follows makes it "a
server like another one". Such a one takes over what the manual page lists (``-a -r -I -R -B -D -u``); the
rest comes from the list options and the defaults, and the nickname stays with its owner.

**Lists.** ``--log --port --ssl --max-…`` give their values in turn to the specified servers, or to the
default server when ``start`` means only that. They specify no server; values left over cause a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import attrs

from stapsrv.config.settings import ServerSettings
from stapsrv.control.cli.invocation import Action, Invocation
from stapsrv.control.cli.targets import (
    ConfiguredServer,
    HostFacts,
    ListOptions,
    Match,
    RunningServer,
    ServerIndex,
    SpecifiedServers,
    changed,
)


class Operation(StrEnum):
    """A step for a server; KEEP STOP RESTART REPORT DRAIN UNDRAIN are for running ones."""

    START = "start"
    # Nothing, which is a success: it runs, or an earlier target starts it.
    KEEP = "keep"
    STOP = "stop"
    RESTART = "restart"
    REPORT = "report"
    # Say that it does not run.
    ABSENT = "absent"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    # Say whether it could be started.
    CHECK = "check"
    # Say why it cannot be done.
    REFUSE = "refuse"


@attrs.frozen(kw_only=True)
class Target:
    """One server and the operation on it."""

    operation: Operation
    # Resolved; as asked for by an action like start (a running server's nickname may differ), else as
    # recorded; None if no server was found.
    settings: ServerSettings | None = None
    # The running server, or None.
    server: RunningServer | None = None
    # The reason, for REFUSE.
    problem: str | None = None
    # The configuration file that asks for it, or None.
    where: str | None = None
    # Of the command because of this target, even if all operations succeed.
    exit_status: int = 0


@attrs.frozen
class Plan:
    """The targets of a command, each server once, in the order of the command line or the configuration.

    A reload's stops come first. Warnings are about options without effect and files for the same server.
    """

    action: Action
    targets: tuple[Target, ...]
    warnings: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """The command's exit status if all operations succeed: 0, 1 or, from status, 3."""
        if self.action is Action.STATUS and not self.targets:
            return _NOT_RUNNING
        statuses = {target.exit_status for target in self.targets}
        return _FAILED if _FAILED in statuses else max(statuses, default=0)


def make_plan(
    invocation: Invocation,
    *,
    running: Sequence[RunningServer],
    configured: Sequence[ConfiguredServer],
    host: HostFacts,
) -> Plan:
    """Plan a command other than ``help`` and ``version`` (manual page, ACTIONS and OPTIONS)."""
    # Exit statuses are the original's, except that it exits 0 when ``stop -n`` names nobody.
    rule = _RULES.get(invocation.action)
    if rule is None:
        return Plan(invocation.action, ())
    if invocation.action is Action.RESTART and not running:
        rule = _RULES[Action.START]
    index = ServerIndex(running, configured, host)
    list_options = ListOptions(invocation.lists)
    if invocation.specifications:
        servers = SpecifiedServers(index, list_options, may_create=rule.like_start)
        matches = servers.matches(invocation.specifications)
    elif not rule.like_start:
        matches = (Match(server.settings, server=server) for server in running)
    elif configured:
        matches = (Match(file.settings, where=file.where) for file in configured)
    else:
        matches = iter([Match(changed(ServerSettings(), list_options.next_values()))])
    planner = _Planner(rule, index, keep_temporary=invocation.keep_temporary)
    targets = planner.targets(matches)
    return Plan(invocation.action, targets, (*planner.warnings, *list_options.warnings()))


_FAILED = 1
_NOT_RUNNING = 3


@attrs.frozen(kw_only=True)
class _Rule:
    # To a running server.
    if_running: Operation
    # To one that does not run.
    if_not: Operation
    # Exit status because of one that does not run.
    absent_status: int = 0
    # Exit status because of an unknown nickname.
    unknown_status: int = _FAILED
    # Means the configured servers if none is specified; an unknown nickname is a new server's.
    like_start: bool = False
    # Stops running servers that are not meant.
    replaces: bool = False


_RULES = {
    Action.START: _Rule(if_running=Operation.KEEP, if_not=Operation.START, like_start=True),
    Action.STOP: _Rule(if_running=Operation.STOP, if_not=Operation.ABSENT),
    Action.RESTART: _Rule(if_running=Operation.RESTART, if_not=Operation.START),
    Action.CONDRESTART: _Rule(if_running=Operation.RESTART, if_not=Operation.ABSENT),
    Action.FORCE_RELOAD: _Rule(
        if_running=Operation.RESTART, if_not=Operation.START, like_start=True, replaces=True
    ),
    Action.STATUS: _Rule(
        if_running=Operation.REPORT,
        if_not=Operation.ABSENT,
        absent_status=_NOT_RUNNING,
        unknown_status=_NOT_RUNNING,
    ),
    Action.DRAIN: _Rule(if_running=Operation.DRAIN, if_not=Operation.ABSENT, absent_status=_FAILED),
    Action.UNDRAIN: _Rule(if_running=Operation.UNDRAIN, if_not=Operation.ABSENT, absent_status=_FAILED),
    Action.CHECK: _Rule(if_running=Operation.CHECK, if_not=Operation.CHECK, like_start=True),
}


class _Planner:
    """Applies a rule to each server."""

    def __init__(self, rule: _Rule, index: ServerIndex, *, keep_temporary: bool) -> None:
        self.warnings: list[str] = []
        self._rule = rule
        self._index = index
        self._keep_temporary = keep_temporary
        # The file that asks for each new server, by identity.
        self._new: dict[ServerSettings, str | None] = {}
        anew = rule.replaces or rule.if_not is Operation.CHECK
        # The owner of each, and the remedy, in words.
        self._nicknames = {
            server.nickname: f"the server running as PID {server.server_id}; stop that one first"
            for server in (() if anew else index.running)
        }

    def targets(self, matches: Iterable[Match]) -> tuple[Target, ...]:
        """Return each server once: first those to stop because they are no longer meant."""
        targets: list[Target] = []
        found: set[RunningServer] = set()
        for target in map(self._target, matches):
            if target.server is not None:
                if target.server in found:
                    continue
                found.add(target.server)
            targets.append(target)
        replaced = [
            Target(operation=Operation.STOP, settings=self._index.resolved(server.settings), server=server)
            for server in self._index.running
            if self._rule.replaces and server not in found
        ]
        return (*replaced, *targets)

    def _target(self, match: Match) -> Target:
        rule = self._rule
        if match.problem is not None:
            status = rule.unknown_status if match.unknown else _FAILED
            return Target(operation=Operation.REFUSE, problem=match.problem, exit_status=status)
        asked = self._index.resolved(match.settings)
        server = match.server or self._index.running_as(asked)
        if rule.if_not is Operation.CHECK or (rule.if_not is Operation.START and server is None):
            return self._new_target(asked, match.where)
        if server is not None:
            return self._running_target(server, asked, match)
        return Target(
            operation=rule.if_not, settings=asked, where=match.where, exit_status=rule.absent_status
        )

    def _running_target(self, server: RunningServer, asked: ServerSettings, match: Match) -> Target:
        operation, where = self._rule.if_running, match.where
        recorded, typed = self._index.resolved(server.settings).tuning, match.settings.tuning
        # One that is named, or has a file, says all of its tuning; of the others only what is typed is known.
        tuning = asked.tuning if match.server or where is not None else typed.over(recorded)
        settings = asked if self._rule.like_start else self._index.resolved(server.settings)
        problem = self._claim_nickname(settings, where) if self._rule.replaces else None
        if problem is not None:
            return Target(
                operation=Operation.REFUSE, problem=problem, exit_status=_FAILED, where=where, server=server
            )
        if operation is Operation.RESTART:
            settings = attrs.evolve(settings, tuning=tuning)
            settings = self._to_start(settings, former_id=server.server_id)
        elif operation is Operation.KEEP and tuning != recorded:
            remedy = "restart changes them" if where is None else f"reload makes them those of {where}"
            self.warnings.append(f"server {server.nickname} runs already, and keeps its limits; {remedy}")
        return Target(operation=operation, settings=settings, server=server, where=where)

    def _new_target(self, asked: ServerSettings, where: str | None) -> Target:
        identity = self._index.identity(asked)
        if identity in self._new:
            if where is not None:
                self.warnings.append(f"{where}: configures the same server as {self._new[identity]}")
            return Target(operation=Operation.KEEP, settings=asked, where=where)
        self._new[identity] = where
        problem = self._claim_nickname(asked, where)
        if problem is not None:
            return Target(
                operation=Operation.REFUSE, problem=problem, exit_status=_FAILED, where=where, settings=asked
            )
        return Target(operation=self._rule.if_not, settings=self._to_start(asked), where=where)

    def _claim_nickname(self, settings: ServerSettings, where: str | None) -> str | None:
        if settings.nickname is None:
            return None
        holder = self._nicknames.get(settings.nickname)
        if holder is not None:
            return f"The nickname '{settings.nickname}' belongs to {holder}"
        self._nicknames[settings.nickname] = f"{where or 'another server of this command'}; give another one"
        return None

    def _to_start(self, settings: ServerSettings, *, former_id: int | None = None) -> ServerSettings:
        """Return settings for a start: with ``-k``, and without a nickname that was only the former id."""
        if settings.nickname == str(former_id):
            settings = attrs.evolve(settings, nickname=None)
        return attrs.evolve(settings, keep_temporary=True) if self._keep_temporary else settings
