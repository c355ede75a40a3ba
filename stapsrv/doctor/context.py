"""What is examined: this host as the servers' user sees it, the configuration, and what runs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

from stapsrv.config.configured import default_server
from stapsrv.config.global_settings import GlobalSettings
from stapsrv.config.settings import ServerSettings
from stapsrv.control.cli.inventory import FoundServer, Inventory
from stapsrv.control.cli.parser import parse_arguments
from stapsrv.errors import ConfigError
from stapsrv.identity.certificate import default_directory, systemtap_directory
from stapsrv.system.blocking import BlockingCalls

_PATIENCE_S = 60.0
"""With the configuration's files, and with supervisors: each has ten seconds to say something."""


class DoctorContext:
    """A host that serves, or means to.

    Args:
        config_file: a global configuration file to go by, or None.
        environ: the environment variables.
        compiles: whether a probe is compiled for each release.

    Raises:
        ConfigError: a global file cannot be used.
    """

    def __init__(self, config_file: str | None, environ: Mapping[str, str], *, compiles: bool = True) -> None:
        words = ["check"] if config_file is None else ["check", "-c", config_file]
        self.invocation = parse_arguments(words, directory=None)
        self.inventory = Inventory(self.invocation, environ)
        self.environ = environ
        self.compiles = compiles

    @property
    def settings(self) -> GlobalSettings:
        """The global settings."""
        return self.inventory.settings

    @property
    def user(self) -> str:
        """Whose servers they are: the one who examines."""
        return self.inventory.caller

    @cached_property
    def home(self) -> Path:
        """The user's home directory."""
        return Path(self.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)

    @property
    def state(self) -> Path:
        """Where stap keeps the user's cache, certificates and settings."""
        return systemtap_directory(self.environ)

    @cached_property
    def servers(self) -> tuple[ServerSettings, ...]:
        """What this user's servers are to be: those that run, and those configured; else the default one."""
        defaults = self.inventory.host.defaults
        running = [found.running.settings.resolved(defaults) for found in self.running]
        configured = [
            server.settings.resolved(defaults)
            for server in self.inventory.configured
            if server.settings.resolved(defaults).user == self.user
        ]
        known = tuple(dict.fromkeys([*running, *configured]))
        if known or self.inventory.files:
            return known
        return (default_server(defaults),)

    @property
    def running(self) -> list[FoundServer]:
        """This user's servers that a supervisor told of."""
        return [found for found in self.inventory.found if found.supervisor["user"] == self.user]

    @property
    def own_database(self) -> Path:
        """The certificate database of servers that name none."""
        return default_directory(self.environ)

    def database_of(self, settings: ServerSettings) -> Path:
        """Return a server's certificate database."""
        return settings.ssl or self.own_database

    @property
    def databases(self) -> list[Path]:
        """The certificate databases of the servers, each once."""
        return list(dict.fromkeys(map(self.database_of, self.servers)))


async def load(
    config_file: str | None, environ: Mapping[str, str], *, compiles: bool = True
) -> DoctorContext:
    """Load what the doctor examines (see :class:`DoctorContext`).

    Raises:
        ConfigError: the file system of the configuration hangs, or a global file cannot be used.
    """
    try:
        return await BlockingCalls(timeout_s=_PATIENCE_S).run(
            partial(DoctorContext, config_file, environ, compiles=compiles)
        )
    except TimeoutError as exc:
        raise ConfigError(
            f"cannot be read: {exc.strerror}",
            where="the configuration, or a directory of supervisors",
            remedy="see which file system hangs",
        ) from exc
