"""What is examined: this host as the servers' user sees it, the configuration, and what runs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from stapsrv.config.configured import default_server
from stapsrv.config.global_settings import GlobalSettings
from stapsrv.config.settings import ServerSettings
from stapsrv.control.arguments import parse_arguments
from stapsrv.control.scene import FoundServer, Scene
from stapsrv.identity.certificate import default_directory, systemtap_directory


class Patient:
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
        self.scene = Scene(self.invocation, environ)
        self.environ = environ
        self.compiles = compiles

    @property
    def settings(self) -> GlobalSettings:
        """The global settings."""
        return self.scene.settings

    @property
    def user(self) -> str:
        """Whose servers they are: the one who examines."""
        return self.scene.caller

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
        defaults = self.scene.host.defaults
        running = [found.running.settings.resolved(defaults) for found in self.running]
        configured = [
            server.settings.resolved(defaults)
            for server in self.scene.configured
            if server.settings.resolved(defaults).user == self.user
        ]
        known = tuple(dict.fromkeys([*running, *configured]))
        if known or self.scene.files:
            return known
        return (default_server(defaults),)

    @property
    def running(self) -> list[FoundServer]:
        """This user's servers that a supervisor told of."""
        return [found for found in self.scene.found if found.supervisor["user"] == self.user]

    @property
    def databases(self) -> list[Path]:
        """The certificate databases of the servers, each once."""
        own = default_directory(self.environ)
        return list(dict.fromkeys([settings.ssl or own for settings in self.servers]))
