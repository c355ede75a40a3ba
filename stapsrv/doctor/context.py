"""The context of the checks: the configuration and the running servers, as the servers' user sees them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from stapsrv.config.settings import ServerSettings
from stapsrv.control.cli.inventory import FoundServer, Inventory
from stapsrv.control.cli.parser import parse_arguments
from stapsrv.errors import ConfigError
from stapsrv.identity.certificate import default_directory, systemtap_directory
from stapsrv.system.blocking import BlockingCalls

# For the configuration's files and for supervisors, each of which has ten seconds to answer.
_TIMEOUT_S = 60.0


class DoctorContext:
    """One user's servers on this host, running and configured; ``config_file`` is a further global one.

    Raises:
        ConfigError: a global file cannot be used.
    """

    def __init__(
        self, config_file: Path | None, environ: Mapping[str, str], *, compiles: bool = True
    ) -> None:
        arguments = ["check"] if config_file is None else ["check", "-c", str(config_file)]
        self.invocation = parse_arguments(arguments, directory=None)
        self.inventory = Inventory(self.invocation, environ)
        self.environ = environ
        self.compiles = compiles
        self.settings = self.inventory.settings
        # The owner of the servers is the user who runs the checks.
        self.user = self.inventory.caller
        # Where stap keeps the user's cache, certificates and settings.
        self.state = systemtap_directory(environ)
        # Of servers that configure none.
        self.own_database = default_directory(environ)

    @cached_property
    def servers(self) -> tuple[ServerSettings, ...]:
        """The settings of this user's running and configured servers; else those of the default one."""
        defaults = self.inventory.host.defaults
        running = [found.settings.resolved(defaults) for found in self.running]
        configured = [server.settings.resolved(defaults) for server in self.inventory.configured]
        own = [settings for settings in configured if settings.user == self.user]
        # A running server counts as it runs, even if its file has changed since.
        settings = tuple(dict.fromkeys([*running, *own]))
        if settings or self.inventory.files:
            return settings
        return (ServerSettings().resolved(defaults),)

    @property
    def running(self) -> list[FoundServer]:
        """This user's servers that a supervisor reports."""
        return [found for found in self.inventory.found if found.supervisor["user"] == self.user]

    @property
    def serving(self) -> list[FoundServer]:
        """The servers of :attr:`running` that serve."""
        return [found for found in self.running if found.info["state"] == "serving"]

    def database_of(self, settings: ServerSettings) -> Path:
        """Return a server's certificate database."""
        return settings.ssl or self.own_database

    @property
    def databases(self) -> list[Path]:
        """The certificate databases of the servers, each once."""
        return list(dict.fromkeys(map(self.database_of, self.servers)))


async def load(
    config_file: Path | None, environ: Mapping[str, str], *, compiles: bool = True
) -> DoctorContext:
    """Load a :class:`DoctorContext`, in bounded time.

    Raises:
        ConfigError: the file system of the configuration hangs, or a global file cannot be used.
    """
    try:
        return await BlockingCalls(timeout_s=_TIMEOUT_S).run(
            partial(DoctorContext, config_file, environ, compiles=compiles)
        )
    except TimeoutError as exc:
        raise ConfigError(
            f"cannot be read: {exc.strerror}",
            where="the configuration, or a directory of supervisors",
            remedy="see which file system hangs",
        ) from exc


def silent_log() -> FilteringBoundLogger:
    """Return a log of nothing: the findings say it."""

    def drop(_logger: object, _level: str, _event: EventDict) -> EventDict:
        raise structlog.DropEvent

    log: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[drop], wrapper_class=structlog.make_filtering_bound_logger("info")
    )
    return log
