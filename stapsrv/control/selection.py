"""Which servers a command means, and what is to become of each.

Pure: an :class:`~stapsrv.control.arguments.Invocation`, the running servers, the configured ones and a few
facts of the host go in; targets come out, each with a deed for the caller to carry out. The specification
is the manual page, also where the original of 4.8 departs from it: that forgets the port and the nickname
of a server named by ``-n`` or ``-p``, and takes a whole command line for one server.

**Names.** ``-n`` and ``-p`` mean that very server, with all its settings, unless what follows makes it
another one: "a server like another one". To such a one it lends what the manual page lists (``-a -r -I -R
-B -D -u``); the rest comes from the option lists and the defaults, and the nickname stays with its owner.

**Lists.** ``--log --port --ssl --max-…`` are dealt out in turn to the servers specified, or to the default
server when it is all that ``start`` comes to. They specify no server; what is left over is warned about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import attrs

from stapsrv.config.settings import HostDefaults, ServerSettings
from stapsrv.control.arguments import (
    LIST_OPTIONS,
    Action,
    DealtValue,
    Invocation,
    OptionLists,
    ServerOption,
    ServerSpecification,
    TypedOption,
)


class Deed(StrEnum):
    """What is to become of a server. Of those that run: KEEP STOP RESTART REPORT DRAIN UNDRAIN."""

    START = "start"
    KEEP = "keep"
    """Nothing is to be done, which is a success: it runs, or an earlier target starts it."""
    STOP = "stop"
    RESTART = "restart"
    REPORT = "report"
    ABSENT = "absent"
    """It does not run: say so."""
    DRAIN = "drain"
    UNDRAIN = "undrain"
    CHECK = "check"
    """Say whether it could be started."""
    REFUSE = "refuse"
    """It cannot be done: say why."""


@attrs.frozen(kw_only=True)
class HostFacts:
    """What the selection has to know about the host.

    Attributes:
        defaults: what holds for servers that do not say.
        installed: the releases that ``-i`` means.
        supervisor_pid: of the process that hosts the running servers; ``-p`` takes it for its only server.
    """

    defaults: HostDefaults
    installed: tuple[str, ...] = ()
    supervisor_pid: int | None = None


@attrs.frozen
class RunningServer:
    """A server that runs: its id, which ``status`` calls its PID, and the settings recorded for it."""

    server_id: int
    settings: ServerSettings

    @property
    def nickname(self) -> str:
        """Its own, or by default its id (manual page, ``-n``)."""
        return self.settings.nickname or str(self.server_id)


@attrs.frozen
class ConfiguredServer:
    """A server of the configuration files, and the file."""

    settings: ServerSettings
    where: str


@attrs.frozen(kw_only=True)
class Target:
    """One server that is meant.

    Attributes:
        deed: what is to become of it.
        settings: its settings, all defaults filled in: as asked for by an action that behaves like start
            (a running server's nickname may be another), as recorded otherwise; None if it was not found.
        server: the running server, or None.
        problem: the reason, for REFUSE.
        where: the configuration file that asks for it, or None.
        exit_status: what the command exits with on its account, even if all that is left to do goes well.
    """

    deed: Deed
    settings: ServerSettings | None = None
    server: RunningServer | None = None
    problem: str | None = None
    where: str | None = None
    exit_status: int = 0


@attrs.frozen
class Selection:
    """What a command means.

    Attributes:
        action: the command's.
        targets: each server once, in the order of the command line or of the configuration; before them
            those that a reload stops.
        warnings: options without effect, files for the same server.
    """

    action: Action
    targets: tuple[Target, ...]
    warnings: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """What the command exits with if all that is left to do goes well: 0, 1 or, from status, 3."""
        if self.action is Action.STATUS and not self.targets:
            return _NOT_RUNNING
        statuses = {target.exit_status for target in self.targets}
        return _FAILED if _FAILED in statuses else max(statuses, default=0)


def select(
    invocation: Invocation,
    *,
    running: Sequence[RunningServer],
    configured: Sequence[ConfiguredServer],
    host: HostFacts,
) -> Selection:
    """Find the servers that a command means.

    Args:
        invocation: the command; ``help`` and ``version`` mean no server.
        running: the running servers, in the order in which they are listed.
        configured: those of the configuration files that could be read, in the files' order.
        host: see there.

    Source: manual page, ACTIONS and OPTIONS; exit statuses as in the original, except that it exits 0
    when ``stop -n`` names nobody.
    """
    rule = _RULES.get(invocation.action)
    if rule is None:
        return Selection(invocation.action, ())
    if invocation.action is Action.RESTART and not running:
        rule = _RULES[Action.START]
    known = _Known(running, configured, host)
    dealer = _Dealer(invocation.lists)
    if invocation.specifications:
        meant = _specified(invocation.specifications, known, dealer, may_create=rule.like_start)
    elif not rule.like_start:
        meant = (_Meant(server.settings, server=server) for server in running)
    elif configured:
        meant = (_Meant(file.settings, where=file.where) for file in configured)
    else:
        meant = iter([_Meant(_changed(ServerSettings(), dealer.deal()))])
    judge = _Judge(rule, known, keep_temporary=invocation.keep_temporary)
    targets = judge.judge(meant)
    return Selection(invocation.action, targets, (*judge.warnings, *dealer.warnings()))


_FAILED = 1
_NOT_RUNNING = 3


@attrs.frozen(kw_only=True)
class _Rule:
    """What an action makes of a server that is meant.

    Attributes:
        if_running: the deed for one that runs.
        if_not: the deed for one that does not.
        absent_status: the exit status on account of one that does not run.
        unknown_status: the exit status on account of a nickname that nobody has.
        like_start: the configured servers are meant if none is specified; a new nickname is a new server's.
        replaces: what runs and is not meant is stopped.
    """

    if_running: Deed
    if_not: Deed
    absent_status: int = 0
    unknown_status: int = _FAILED
    like_start: bool = False
    replaces: bool = False


_RULES = {
    Action.START: _Rule(if_running=Deed.KEEP, if_not=Deed.START, like_start=True),
    Action.STOP: _Rule(if_running=Deed.STOP, if_not=Deed.ABSENT),
    Action.RESTART: _Rule(if_running=Deed.RESTART, if_not=Deed.START),
    Action.CONDRESTART: _Rule(if_running=Deed.RESTART, if_not=Deed.ABSENT),
    Action.FORCE_RELOAD: _Rule(if_running=Deed.RESTART, if_not=Deed.START, like_start=True, replaces=True),
    Action.RELOAD: _Rule(if_running=Deed.KEEP, if_not=Deed.START, like_start=True, replaces=True),
    Action.STATUS: _Rule(
        if_running=Deed.REPORT, if_not=Deed.ABSENT, absent_status=_NOT_RUNNING, unknown_status=_NOT_RUNNING
    ),
    Action.DRAIN: _Rule(if_running=Deed.DRAIN, if_not=Deed.ABSENT, absent_status=_FAILED),
    Action.UNDRAIN: _Rule(if_running=Deed.UNDRAIN, if_not=Deed.ABSENT, absent_status=_FAILED),
    Action.CHECK: _Rule(if_running=Deed.CHECK, if_not=Deed.CHECK, like_start=True),
}


@attrs.frozen
class _Meant:
    """A server that is meant, before the action has its say; with a problem, one that cannot be had.

    Attributes:
        settings: what is asked for.
        server: the running server, if it was named itself; others are found by their settings.
        where: the file that configures it, if all its settings come from there.
        problem: why it cannot be had.
        unknown: the problem is a nickname that nobody has.
    """

    settings: ServerSettings
    server: RunningServer | None = attrs.field(default=None, kw_only=True)
    where: str | None = attrs.field(default=None, kw_only=True)
    problem: str | None = attrs.field(default=None, kw_only=True)
    unknown: bool = attrs.field(default=False, kw_only=True)


class _Known:
    """The servers that run or are configured, to be found by name or by settings."""

    def __init__(
        self, running: Sequence[RunningServer], configured: Sequence[ConfiguredServer], host: HostFacts
    ) -> None:
        self.running = running
        self.configured = configured
        self.host = host
        # Reversed: of two that are the same, the first listed is found.
        self._by_identity = {self.identity(server.settings): server for server in reversed(running)}

    def resolved(self, settings: ServerSettings) -> ServerSettings:
        return settings.resolved(self.host.defaults)

    def identity(self, settings: ServerSettings) -> ServerSettings:
        return settings.identity(self.host.defaults)

    def running_as(self, settings: ServerSettings) -> RunningServer | None:
        """Return the running server that is the same as one with ``settings``."""
        return self._by_identity.get(self.identity(settings))

    def named(self, name: TypedOption) -> _Meant:
        """Return who ``-n`` or ``-p`` names, or a problem."""
        return self._by_pid(name.value) if name.option is ServerOption.PID else self._by_nickname(name.value)

    def _by_nickname(self, nickname: str) -> _Meant:
        for server in self.running:
            if server.nickname == nickname:
                return _Meant(server.settings, server=server)
        for file in self.configured:
            if file.settings.nickname == nickname:
                return _Meant(file.settings, where=file.where)
        problem = f"No configuration found for the nickname '{nickname}'"
        return _Meant(ServerSettings(nickname=nickname), problem=problem, unknown=True)

    def _by_pid(self, pid: str) -> _Meant:
        servers = [server for server in self.running if str(server.server_id) == pid]
        if not servers and pid == str(self.host.supervisor_pid):
            servers = list(self.running)
        if len(servers) == 1:
            return _Meant(servers[0].settings, server=servers[0])
        problem = f"No stap-server running as pid {pid}"
        if servers:
            ids = ", ".join(str(server.server_id) for server in servers)
            problem = f"Process {pid} hosts {len(servers)} servers; name one by its own id: {ids}"
        return _Meant(ServerSettings(), problem=problem)


class _Dealer:
    """Deals out the option lists, one value of each at a time."""

    def __init__(self, lists: OptionLists) -> None:
        self._left: dict[str, list[DealtValue]] = {
            name: list(values) for name, values in lists._asdict().items()
        }

    def deal(self) -> dict[str, object]:
        """Return what the next server gets, by attribute of its settings."""
        return {name: _dealt(name, values.pop(0)) for name, values in self._left.items() if values}

    def warnings(self) -> Iterator[str]:
        for name, values in self._left.items():
            for value in values:
                yield f"{LIST_OPTIONS[name]} {repr('') if value is None else value} applies to no server"


def _dealt(name: str, value: DealtValue) -> object:
    if value is None:
        return getattr(ServerSettings(), name)
    return Path(value) if isinstance(value, str) else value


def _specified(
    specifications: Iterable[ServerSpecification], known: _Known, dealer: _Dealer, *, may_create: bool
) -> Iterator[_Meant]:
    """Give the servers that are specified, and deal each its share of the lists."""
    in_force: tuple[TypedOption, ...] = ()
    for server in specifications:
        base = _base(server, in_force, known, may_create=may_create)
        naming = (*server.earlier, *server.settings)
        if server.name or not server.each_release or _has_release(naming):
            yield _overridden(base, server.settings, dealer.deal(), known)
        if server.each_release:
            yield from _for_each_release(base, server.settings, known, dealer)
        in_force += tuple(typed for typed in naming if typed.option in _IN_FORCE)


def _base(
    server: ServerSpecification, in_force: Iterable[TypedOption], known: _Known, *, may_create: bool
) -> _Meant:
    """Return what ``-n`` or ``-p`` loads; for a new server, what was typed before."""
    earlier = _described(ServerSettings(), (*in_force, *server.earlier))
    if server.name is None:
        return _Meant(earlier)
    named = known.named(server.name)
    if named.unknown and may_create:
        return _Meant(attrs.evolve(earlier, nickname=server.name.value))
    return named


def _overridden(
    base: _Meant, typed: Iterable[TypedOption], dealt: Mapping[str, object], known: _Known
) -> _Meant:
    """Let what is typed and dealt have its way; that may make another server of a named one."""
    whole = _changed(_described(base.settings, typed), dealt)
    named = base.server is not None or base.where is not None
    if named and known.identity(whole) == known.identity(base.settings):
        return base
    if named:
        return _Meant(_changed(_described(_lent(base.settings), typed), dealt))
    return attrs.evolve(base, settings=whole)


def _for_each_release(
    base: _Meant, typed: Iterable[TypedOption], known: _Known, dealer: _Dealer
) -> Iterator[_Meant]:
    """Give a server like ``base`` for each installed release and the host's architecture (``-i``)."""
    alike = attrs.evolve(_described(_lent(base.settings), typed), arch=None)
    if not known.host.installed:
        yield _Meant(alike, problem="-i means no server: no kernel release is installed")
    for release in known.host.installed:
        yield _Meant(_changed(attrs.evolve(alike, releases=(release,)), dealer.deal()))


_ARRAYS = {
    ServerOption.RELEASE: "releases",
    ServerOption.INCLUDE: "include",
    ServerOption.BUILD: "build",
    ServerOption.DEFINE: "define",
}
_SINGLES = {ServerOption.ARCH: "arch", ServerOption.RUNTIME: "runtime", ServerOption.USER: "user"}
_IN_FORCE = {*_ARRAYS, *_SINGLES} - {ServerOption.RELEASE, ServerOption.ARCH}
"""What is typed for one server and stays in force for those after it."""


def _described(settings: ServerSettings, typed: Iterable[TypedOption]) -> ServerSettings:
    """Apply describing options in order: some accumulate, of the others the last counts."""
    for option, value in typed:
        if option in _ARRAYS:
            name = _ARRAYS[option]
            settings = _changed(settings, {name: (*getattr(settings, name), value)})
        else:
            settings = _changed(settings, {_SINGLES[option]: value or None})
    return settings


def _lent(settings: ServerSettings) -> ServerSettings:
    """Return what a named server lends to another one (manual page, ``-n`` and ``-p``)."""
    names = (*_ARRAYS.values(), *_SINGLES.values())
    return _changed(ServerSettings(), {name: getattr(settings, name) for name in names})


def _changed(settings: ServerSettings, changes: Mapping[str, object]) -> ServerSettings:
    # mypy cannot follow attributes that come from tables; the tests set each of them.
    return attrs.evolve(settings, **changes)  # type: ignore[arg-type]


def _has_release(typed: Iterable[TypedOption]) -> bool:
    return any(option is ServerOption.RELEASE for option, _ in typed)


class _Judge:
    """Says what an action does with each server that is meant.

    Attributes:
        warnings: files for the same server.
    """

    def __init__(self, rule: _Rule, known: _Known, *, keep_temporary: bool) -> None:
        self.warnings: list[str] = []
        self._rule = rule
        self._known = known
        self._keep_temporary = keep_temporary
        self._new: dict[ServerSettings, str | None] = {}
        """Servers that come to be, by identity, and the file that asks for each."""
        anew = rule.replaces or rule.if_not is Deed.CHECK
        self._nicknames = {
            server.nickname: f"the server running as PID {server.server_id}; stop that one first"
            for server in (() if anew else known.running)
        }
        """Who has each, and what to do about it, in words."""

    def judge(self, meant: Iterable[_Meant]) -> tuple[Target, ...]:
        """Return each server once: those to stop because they are not meant any more, then those meant."""
        targets: list[Target] = []
        found: set[int] = set()
        for target in map(self._target, meant):
            if target.server is not None:
                if target.server.server_id in found:
                    continue
                found.add(target.server.server_id)
            targets.append(target)
        replaced = [
            Target(deed=Deed.STOP, settings=self._known.resolved(server.settings), server=server)
            for server in self._known.running
            if self._rule.replaces and server.server_id not in found
        ]
        return (*replaced, *targets)

    def _target(self, meant: _Meant) -> Target:
        rule = self._rule
        if meant.problem is not None:
            status = rule.unknown_status if meant.unknown else _FAILED
            return Target(deed=Deed.REFUSE, problem=meant.problem, exit_status=status)
        asked = self._known.resolved(meant.settings)
        server = meant.server or self._known.running_as(asked)
        if rule.if_not is Deed.CHECK or (rule.if_not is Deed.START and server is None):
            return self._new_target(asked, meant.where)
        if server is not None:
            return self._running_target(server, asked, meant.where)
        return Target(deed=rule.if_not, settings=asked, where=meant.where, exit_status=rule.absent_status)

    def _running_target(self, server: RunningServer, asked: ServerSettings, where: str | None) -> Target:
        deed = self._rule.if_running
        settings = asked if self._rule.like_start else self._known.resolved(server.settings)
        problem = self._claim_nickname(settings, where) if self._rule.replaces else None
        if problem is not None:
            return Target(deed=Deed.REFUSE, server=server, problem=problem, where=where, exit_status=_FAILED)
        if deed is Deed.RESTART:
            settings = self._to_start(settings, former_id=server.server_id)
        return Target(deed=deed, settings=settings, server=server, where=where)

    def _new_target(self, asked: ServerSettings, where: str | None) -> Target:
        identity = self._known.identity(asked)
        if identity in self._new:
            if where is not None:
                self.warnings.append(f"{where}: configures the same server as {self._new[identity]}")
            return Target(deed=Deed.KEEP, settings=asked, where=where)
        self._new[identity] = where
        problem = self._claim_nickname(asked, where)
        if problem is not None:
            return Target(deed=Deed.REFUSE, settings=asked, problem=problem, where=where, exit_status=_FAILED)
        return Target(deed=self._rule.if_not, settings=self._to_start(asked), where=where)

    def _claim_nickname(self, settings: ServerSettings, where: str | None) -> str | None:
        """Reserve a nickname; return the problem if somebody has it."""
        if settings.nickname is None:
            return None
        holder = self._nicknames.get(settings.nickname)
        if holder is not None:
            return f"The nickname '{settings.nickname}' belongs to {holder}"
        self._nicknames[settings.nickname] = f"{where or 'another server of this command'}; give another one"
        return None

    def _to_start(self, settings: ServerSettings, *, former_id: int | None = None) -> ServerSettings:
        """Return settings for a start: with ``-k``, and without a nickname that was but the former id."""
        if settings.nickname == str(former_id):
            settings = attrs.evolve(settings, nickname=None)
        return attrs.evolve(settings, keep_temporary=True) if self._keep_temporary else settings
