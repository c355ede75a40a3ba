"""Resolves the options that describe or name servers: specifications in, settings out.

Pure, like :mod:`stapsrv.control.cli.plan`, whose docstring says what names and lists mean; that module
decides what happens to the servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from stapsrv.config.files import value_in
from stapsrv.config.settings import HostDefaults, ServerSettings
from stapsrv.control.cli.invocation import (
    ARCH,
    DESCRIBING_OPTIONS,
    LIST_OPTIONS,
    PID,
    PORT,
    RELEASE,
    ServerSpecification,
    TypedOption,
)

if TYPE_CHECKING:
    from stapsrv.config.setting import Setting


@attrs.frozen(kw_only=True)
class HostFacts:
    """The host's defaults for servers, and the installed releases, for ``-i``."""

    defaults: HostDefaults
    installed: tuple[str, ...] = ()


@attrs.frozen
class RunningServer:
    """A running or recorded server; its id is what ``status`` calls PID."""

    server_id: int
    settings: ServerSettings
    # ``-p`` accepts it for the only server of a supervisor.
    supervisor_pid: int | None = None

    @property
    def nickname(self) -> str:
        """The given one, else the id (manual page, ``-n``)."""
        return self.settings.nickname or str(self.server_id)


@attrs.frozen
class ConfiguredServer:
    """A server of the configuration, and its file."""

    settings: ServerSettings
    where: str


@attrs.frozen
class Match:
    """A server that the command line means, or the problem why there is none."""

    # As asked for.
    settings: ServerSettings
    # The running server, if it was named itself; others are found by their settings.
    server: RunningServer | None = attrs.field(default=None, kw_only=True)
    # The file that configures it, if all its settings come from there.
    where: str | None = attrs.field(default=None, kw_only=True)
    problem: str | None = attrs.field(default=None, kw_only=True)
    # The problem is a nickname that nobody has.
    unknown: bool = attrs.field(default=False, kw_only=True)


class ServerIndex:
    """Finds running and configured servers by name or settings."""

    def __init__(
        self, running: Sequence[RunningServer], configured: Sequence[ConfiguredServer], host: HostFacts
    ) -> None:
        self.running = running
        self.configured = configured
        self.host = host
        # Reversed: of two that are the same, the first listed is found.
        self._by_identity = {self.identity(server.settings): server for server in reversed(running)}

    def resolved(self, settings: ServerSettings) -> ServerSettings:
        """Fill in the host's defaults."""
        return settings.resolved(self.host.defaults)

    def identity(self, settings: ServerSettings) -> ServerSettings:
        """Return what two settings of the same server have in common."""
        return settings.identity(self.host.defaults)

    def running_as(self, settings: ServerSettings) -> RunningServer | None:
        """Return the running server that is the same as one with ``settings``."""
        return self._by_identity.get(self.identity(settings))

    def serving_all(self, releases: Sequence[str], alike: ServerSettings) -> RunningServer | None:
        """Return the running server for all of these releases that is ``alike`` but for what lists give."""
        from_lists = {row.attribute: row.default for row in LIST_OPTIONS.values()}
        wanted = self.identity(attrs.evolve(alike, releases=tuple(releases)))
        for server in self.running:
            settings = changed(server.settings, from_lists)
            if self.identity(settings) == wanted:
                return server
        return None

    def named(self, name: TypedOption) -> Match:
        """Return the server that ``-n`` or ``-p`` names, or a problem."""
        return self._by_pid(name.value) if name.option == PID else self._by_nickname(name.value)

    def _by_nickname(self, nickname: str) -> Match:
        for server in self.running:
            if server.nickname == nickname:
                return Match(server.settings, server=server)
        for file in self.configured:
            if file.settings.nickname == nickname:
                return Match(file.settings, where=file.where)
        problem = f"No configuration found for the nickname '{nickname}'"
        return Match(ServerSettings(nickname=nickname), problem=problem, unknown=True)

    def _by_pid(self, pid: str) -> Match:
        servers = [server for server in self.running if str(server.server_id) == pid]
        servers = servers or [server for server in self.running if str(server.supervisor_pid) == pid]
        if len(servers) == 1:
            return Match(servers[0].settings, server=servers[0])
        problem = f"No stap-server running as pid {pid}"
        if servers:
            ids = ", ".join(str(server.server_id) for server in servers)
            problem = f"Process {pid} hosts {len(servers)} servers; name one by its own id: {ids}"
        return Match(ServerSettings(), problem=problem)


class ListOptions:
    """The options that give one value to each server in turn."""

    def __init__(self, lists: Mapping[str, Sequence[object]]) -> None:
        self._left = {option: list(values) for option, values in lists.items()}

    def next_values(self) -> dict[str, object]:
        """Return the next server's values, by attribute of its settings."""
        dealt = {LIST_OPTIONS[option]: values.pop(0) for option, values in self._left.items() if values}
        return {row.attribute: row.default if value is None else value for row, value in dealt.items()}

    @property
    def has_one_port(self) -> bool:
        """Whether one port is left, for one server."""
        return sum(bool(port) for port in self._left.get(PORT, ())) == 1

    def warnings(self) -> Iterator[str]:
        """Yield a warning for each value that no server took."""
        for option, values in self._left.items():
            for value in values:
                yield f"{option} {repr('') if value is None else value} applies to no server"


class SpecifiedServers:
    """Turns specifications into servers; where it ``may_create`` them, unknown nicknames are new servers'."""

    def __init__(self, index: ServerIndex, list_options: ListOptions, *, may_create: bool) -> None:
        self._index = index
        self._list_options = list_options
        self._may_create = may_create

    def matches(self, specifications: Iterable[ServerSpecification]) -> Iterator[Match]:
        """Yield the specified servers, each with its values of the list options."""
        in_force: tuple[TypedOption, ...] = ()
        for server in specifications:
            base = self._base(server, in_force)
            naming = (*server.earlier, *server.settings)
            if server.name or not server.each_release or RELEASE in dict(naming):
                yield self._overridden(base, server.settings)
            if server.each_release:
                yield from self._for_each_release(base, server.settings)
            in_force += tuple(typed for typed in naming if typed.option in _IN_FORCE)

    def _base(self, server: ServerSpecification, in_force: Iterable[TypedOption]) -> Match:
        """Return the server that ``-n`` or ``-p`` names; for a new one, the settings typed before."""
        earlier = _described(ServerSettings(), (*in_force, *server.earlier))
        if server.name is None:
            return Match(earlier)
        named = self._index.named(server.name)
        if named.unknown and self._may_create:
            return Match(attrs.evolve(earlier, nickname=server.name.value))
        return named

    def _overridden(self, base: Match, typed: Iterable[TypedOption]) -> Match:
        """Apply typed and listed settings, which may turn a named server into another one."""
        listed = self._list_options.next_values()
        whole = changed(_described(base.settings, typed), listed)
        if base.server is None and base.where is None:
            return attrs.evolve(base, settings=whole)
        whole = _typed_once(whole, base.settings)
        if self._index.identity(whole) == self._index.identity(base.settings):
            # The same server, though it may be tuned otherwise from its next start on.
            return attrs.evolve(base, settings=attrs.evolve(base.settings, tuning=whole.tuning))
        return Match(changed(_described(_inherited(base.settings), typed), listed))

    def _for_each_release(self, base: Match, typed: Iterable[TypedOption]) -> Iterator[Match]:
        """Yield a server like ``base`` for each installed release and the host's architecture (``-i``).

        With one port it is one server for all of them, which the original of 4.8 starts in any case. Actions
        that start nothing mean that one where it runs. Where other hosts compile, it is one server, for all
        that they have.
        """
        alike = attrs.evolve(_described(_inherited(base.settings), typed), arch=None)
        is_here = self._index.resolved(alike).compiles_here
        installed = self._index.host.installed if is_here else ()
        if is_here and not installed:
            yield Match(alike, problem="-i means no server: no kernel release is installed")
        elif not self._may_create and (running := self._index.serving_all(installed, alike)):
            yield Match(running.settings, server=running)
        elif self._list_options.has_one_port or not is_here:
            yield self._listed(attrs.evolve(alike, releases=installed))
        else:
            for release in installed:
                yield self._listed(attrs.evolve(alike, releases=(release,)))

    def _listed(self, settings: ServerSettings) -> Match:
        return Match(changed(settings, self._list_options.next_values()))


# What is typed for one server and stays in force for those after it.
_IN_FORCE = DESCRIBING_OPTIONS.keys() - {RELEASE, ARCH}


def _typed_once(whole: ServerSettings, named: ServerSettings) -> ServerSettings:
    """Return ``whole`` without the values of lists that were typed for the named server already.

    ``start -n web -I /i`` twice means one server: it has these directories, and the last of them is /i.
    """
    for row in DESCRIBING_OPTIONS.values():
        before, after = value_in(row, named), value_in(row, whole)
        if isinstance(before, tuple) and isinstance(after, tuple) and after[: len(before)] == before:
            typed = after[len(before) :]
            if typed and before[-len(typed) :] == typed:
                whole = changed(whole, _with_value(row, before, whole))
    return whole


def _with_value(row: Setting[Any], value: object, settings: ServerSettings) -> dict[str, object]:
    return {"tuning": {**settings.tuning, row.attribute: value}} if row.tunable else {row.attribute: value}


def _described(settings: ServerSettings, typed: Iterable[TypedOption]) -> ServerSettings:
    for option, text in typed:
        row = DESCRIBING_OPTIONS[option]
        values = dict(settings.tuning) if row.tunable else {row.attribute: value_in(row, settings)}
        if text:
            row.add(values, text)
        elif row.tunable:
            values.pop(row.attribute, None)
        else:
            values[row.attribute] = row.default
        settings = changed(settings, {"tuning": values} if row.tunable else values)
    return settings


def _inherited(settings: ServerSettings) -> ServerSettings:
    """Return the settings that another server takes over from a named one (manual page, ``-n``)."""
    names = (*(row.attribute for row in DESCRIBING_OPTIONS.values() if not row.tunable), "tuning")
    return changed(ServerSettings(), {name: getattr(settings, name) for name in names})


def changed(settings: ServerSettings, changes: Mapping[str, object]) -> ServerSettings:
    """Return ``settings`` with ``changes``, by attribute."""
    # mypy cannot follow attributes that come from tables; the tests set each of them.
    return attrs.evolve(settings, **changes)  # type: ignore[arg-type]
