"""The state that a command finds: settings, running servers, configured servers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import attrs

from stapsrv.config.configured import ConfiguredFile, read_configured_or_environ
from stapsrv.config.kernels import installed_releases
from stapsrv.config.settings import HostDefaults
from stapsrv.control.cli.invocation import NICKNAME, Action, Invocation
from stapsrv.control.cli.targets import ConfiguredServer, HostFacts, RunningServer
from stapsrv.control.client.accounts import caller_name
from stapsrv.control.client.discovery import SupervisorScan
from stapsrv.control.client.whereabouts import own_settings, readable_stat_paths
from stapsrv.control.protocol.schema import settings_from

if TYPE_CHECKING:
    from stapsrv.control.cli.console import OrphanedServer
    from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorInfo


@attrs.frozen(kw_only=True)
class FoundServer(RunningServer):
    """A running server as its supervisor described it; ``own`` says whether this user may command it."""

    info: ServerInfo = attrs.field(eq=False)
    supervisor: SupervisorInfo = attrs.field(eq=False)
    own: bool


@attrs.frozen(kw_only=True)
class LostServer(RunningServer):
    """A server whose supervisor is gone, as its record describes it."""

    info: OrphanedServer = attrs.field(eq=False)


class Inventory:
    """Settings and servers at the beginning of a command; ConfigError: a global file cannot be used.

    ``supervisors`` are those that answered; ``problems`` has a line for each that does not.
    """

    def __init__(self, invocation: Invocation, environ: Mapping[str, str]) -> None:
        self.invocation = invocation
        self.environ = environ
        self.settings = own_settings(environ, invocation.config_file)
        self.caller = caller_name()
        # What is begun has a deadline of its own, and begins with who is there.
        only_asks = invocation.action in {Action.STATUS, Action.CHECK}
        scan = SupervisorScan(
            readable_stat_paths(self.settings, invocation.config_file, environ),
            answer_s=invocation.timeout_s if only_asks else None,
        )
        self.problems = scan.problems
        self.supervisors = scan.supervisors
        self._orphaned = scan.orphaned()

    @property
    def default_user(self) -> str:
        """The user of servers that name none."""
        return self.settings.default_user(self.caller, euid=os.geteuid())

    @cached_property
    def host(self) -> HostFacts:
        """The host's facts for the plan."""
        defaults = HostDefaults(
            user=self.default_user,
            log=self.settings.log_file,
            tuning=self.settings.tuning.of_servers(),
        )
        return HostFacts(defaults=defaults, installed=tuple(installed_releases()))

    def owns(self, supervisor: SupervisorInfo) -> bool:
        """Whether this user may command a supervisor."""
        return os.geteuid() == 0 or supervisor["user"] == self.caller

    @cached_property
    def found(self) -> list[FoundServer]:
        """The running servers: those that this user may command first, and of them the default user's."""
        found = [
            FoundServer(
                server_id=info["id"],
                settings=settings_from(info["settings"], where=f"server {info['id']}"),
                supervisor_pid=supervisor["pid"],
                info=info,
                supervisor=supervisor,
                own=self.owns(supervisor),
            )
            for supervisor in self.supervisors
            for info in supervisor["servers"]
        ]
        return sorted(found, key=lambda server: (not server.own, self.user_of(server) != self.default_user))

    @cached_property
    def orphaned_servers(self) -> list[LostServer]:
        """The servers whose supervisor is gone."""
        return [
            LostServer(
                server_id=lost["id"],
                settings=settings_from(lost["settings"], where=lost["record"]),
                info=lost,
            )
            for lost in self._orphaned
        ]

    @property
    def own_orphaned_servers(self) -> list[LostServer]:
        """The servers of :attr:`orphaned_servers` that this user may take up or forget."""
        return [
            server
            for server in self.orphaned_servers
            if os.geteuid() == 0 or server.settings.user == self.caller
        ]

    def user_of(self, server: RunningServer) -> str:
        """Return the user that a server runs or ran as."""
        user = server.supervisor["user"] if isinstance(server, FoundServer) else server.settings.user
        return user or self.default_user

    def without_namesakes(self, running: Sequence[RunningServer]) -> list[RunningServer]:
        """Leave out servers with a nickname that was typed and is, by the configuration, another user's.

        Else a member of the group could have a name of the system's mean his own server.
        """
        names = {spec.name.value for spec in self.invocation.specifications if spec.name is not None}
        others = {server for server in running if self.user_of(server) != self.default_user}
        if names.isdisjoint(server.nickname for server in others):
            return list(running)
        users = {server.settings.nickname: server.settings.user for server in self.configured}
        return [
            server
            for server in running
            if server not in others
            or server.nickname not in users
            or (users[server.nickname] or self.default_user) == self.user_of(server)
        ]

    @cached_property
    def files(self) -> tuple[ConfiguredFile, ...]:
        """The files of the configuration directory, or the environment instead; may raise ConfigError."""
        return read_configured_or_environ(self.settings.config_path, self.environ)

    @property
    def configured(self) -> list[ConfiguredServer]:
        """The servers of the usable files."""
        return [
            ConfiguredServer(file.settings, str(file.path))
            for file in self.files
            if file.settings is not None
        ]

    def names_unknown(self, running: Sequence[RunningServer]) -> bool:
        """Whether a nickname is given that none of these servers has; a configured one may."""
        nicknames = {server.nickname for server in running}
        names = [server.name for server in self.invocation.specifications if server.name is not None]
        return any(name.option == NICKNAME and name.value not in nicknames for name in names)

    @property
    def nothing_usable(self) -> bool:
        """Whether there are files and none is usable: then there is no default server either."""
        return bool(self.files) and not self.configured

    @property
    def faults(self) -> list[str]:
        """The problems of the other files."""
        return [str(file.fault) for file in self.files if file.fault is not None]

    def fault_of(self, nickname: str) -> str | None:
        """Return the problem of an unusable file that seems to define this nickname, if there is one."""
        wanted = f"NICKNAME={nickname}"
        for file in self.files:
            with contextlib.suppress(OSError):
                text = "" if file.fault is None else file.path.read_text(encoding="utf-8", errors="replace")
                if wanted in map(str.strip, text.splitlines()):
                    return str(file.fault)
        return None
