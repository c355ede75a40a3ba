"""The service's own settings: where its files are, and whom its servers run as.

Light to import, like :mod:`stapsrv.config.files`: the command line's ``status`` reads these settings to
find the supervisor, and prints before attrs would be loaded. So they are a named tuple.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from stapsrv.config.environment import values_from_environ
from stapsrv.config.files import Variable, decode_config, values_from
from stapsrv.config.log_format import LogFormat, parse_log_format
from stapsrv.config.mdns import (
    MdnsSettings,
    parse_host,
    parse_interfaces,
    parse_switch,
)
from stapsrv.config.metrics_address import MetricsAddress, parse_metrics_address
from stapsrv.config.tunables import NOTHING_SET, TUNABLES, Tuning, with_tuning
from stapsrv.errors import ConfigError

SERVICE_USER = "stap-server"
"""Whom root's servers run as, unless told otherwise (manual page, ``-u``)."""
DEFAULT_FILES = (Path("/etc/sysconfig/stap-server"), Path("/etc/default/stap-server"))
"""Read in this order when they exist; the second is Debian's place."""


class GlobalSettings(NamedTuple):
    """The global configuration (manual page, CONFIGURATION).

    Attributes:
        config_path: the directory of the servers' ``*.conf`` files.
        stat_path: the directory of status files and control sockets.
        log_file: the log of servers that have none of their own.
        log_format: how lines look in logs that do not say; None for the classic format.
        stap_user: whom servers run as, or None for the default user.
        metrics: where metrics and health are to be had; None for nowhere.
        mdns_enabled: of :class:`stapsrv.config.mdns.MdnsSettings`, like the next two.
        mdns_interfaces: likewise.
        mdns_host: likewise.
        tuning: what is set of the table of tunables, for every server and for the supervisor.
    """

    config_path: Path
    stat_path: Path
    log_file: Path
    stap_user: str | None = None
    log_format: LogFormat | None = None
    metrics: MetricsAddress | None = None
    mdns_enabled: bool | None = None
    mdns_interfaces: tuple[str, ...] | None = None
    mdns_host: str | None = None
    tuning: Tuning = NOTHING_SET

    @property
    def mdns(self) -> MdnsSettings:
        """How servers are advertised."""
        return MdnsSettings(self.mdns_enabled, self.mdns_interfaces, self.mdns_host)

    def default_user(self, invoker: str, *, euid: int) -> str:
        """Return whom a server without a user of its own runs as.

        Source: manual page, ``STAP_USER``: the invoking user, and stap-server for the init script,
        which is to say when root asks, since no server runs as root.
        """
        return self.stap_user or (SERVICE_USER if euid == 0 else invoker)


SYSTEM_SETTINGS = GlobalSettings(
    config_path=Path("/etc/stap-server/conf.d"),
    stat_path=Path("/var/run/stap-server"),
    log_file=Path("/var/log/stap-server/log"),
)

GLOBAL_VARIABLES = (
    Variable("CONFIG_PATH", "config_path", Path),
    Variable("STAT_PATH", "stat_path", Path),
    Variable("LOG_FILE", "log_file", Path),
    Variable("LOG_FORMAT", "log_format", parse_log_format),
    Variable("STAP_USER", "stap_user"),
    Variable("METRICS", "metrics", parse_metrics_address),
    Variable("MDNS", "mdns_enabled", parse_switch),
    Variable("MDNS_INTERFACES", "mdns_interfaces", parse_interfaces),
    Variable("MDNS_HOST", "mdns_host", parse_host),
    *map(Variable.of, TUNABLES),
)


def global_defaults(
    environ: Mapping[str, str], *, euid: int, home: Path, can_write: Callable[[Path], bool]
) -> GlobalSettings:
    """Return what holds where no file says otherwise.

    That is the system's paths. A plain user who cannot write one of them has his own instead: the state
    in ``$XDG_RUNTIME_DIR/stap-server``, the log in ``$XDG_STATE_HOME/stap-server/log``. The state
    directory is ``~/.local/state`` by default. A run-time directory has no default, so without one the
    state goes to ``run`` beside the log: never to a name in /tmp that a stranger could have made first.

    Args:
        environ: the environment variables, which may name each path (:mod:`stapsrv.config.environment`).
        euid: the effective user id; root always uses the system's paths.
        home: the user's home directory.
        can_write: whether this user may write a path (:func:`can_write`).

    Raises:
        ConfigError: an environment variable's value cannot be.

    Source: DESIGN, decision 6; XDG Base Directory Specification (relative values are to be ignored).
    """
    if euid == 0:
        return _lay_environ_over(SYSTEM_SETTINGS, environ)
    state = (_absolute(environ.get("XDG_STATE_HOME")) or home / ".local" / "state") / "stap-server"
    runtime = _absolute(environ.get("XDG_RUNTIME_DIR"))
    settings = SYSTEM_SETTINGS
    if not can_write(settings.stat_path):
        settings = settings._replace(stat_path=runtime / "stap-server" if runtime else state / "run")
    if not can_write(settings.log_file):
        settings = settings._replace(log_file=state / "log")
    return _lay_environ_over(settings, environ)


def global_from_environ(environ: Mapping[str, str]) -> GlobalSettings:
    """Return what the environment variables say, over the system's settings.

    Raises:
        ConfigError: a variable's value cannot be.
    """
    return _lay_environ_over(SYSTEM_SETTINGS, environ)


def lay_over(base: GlobalSettings, text: str, *, where: str) -> GlobalSettings:
    """Return ``base`` with what the global file ``text`` sets; an empty value sets nothing.

    Raises:
        ConfigFaults: everything that is wrong with the file.
    """
    return with_values(base, values_from(text, where=where, variables=GLOBAL_VARIABLES))


def with_values(base: GlobalSettings, values: Mapping[str, object]) -> GlobalSettings:
    """Return ``base`` with values by the attributes of :data:`GLOBAL_VARIABLES` laid over it."""
    laid = base._replace(**with_tuning(values))
    return laid._replace(tuning=laid.tuning.over(base.tuning))


def read_global_settings(
    defaults: GlobalSettings, config_file: Path | None, *, default_files: Iterable[Path] = DEFAULT_FILES
) -> GlobalSettings:
    """Read the default files that exist, then ``config_file`` (the last ``-c``), each laid over the former.

    Raises:
        ConfigError: a file cannot be read or is wrong; only a default file may be missing.
    """
    settings = defaults
    for path in default_files:
        try:
            settings = _read_over(settings, path)
        except FileNotFoundError:
            continue
    if config_file is None:
        return settings
    try:
        return _read_over(settings, config_file)
    except FileNotFoundError as exc:
        raise ConfigError(
            "no such file", where=str(config_file), remedy="give -c a global configuration file"
        ) from exc


def can_write(path: Path) -> bool:
    """Whether this process may write ``path``, or make it where it is missing."""
    existing = next(place for place in (path, *path.absolute().parents) if os.access(place, os.F_OK))
    return os.access(existing, os.W_OK | os.X_OK if existing.is_dir() else os.W_OK)


def _read_over(settings: GlobalSettings, path: Path) -> GlobalSettings:
    where = str(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise ConfigError(f"cannot be read ({exc.strerror})", where=where) from exc
    return lay_over(settings, decode_config(data, where=where), where=where)


def _lay_environ_over(settings: GlobalSettings, environ: Mapping[str, str]) -> GlobalSettings:
    return with_values(settings, values_from_environ(environ, variables=GLOBAL_VARIABLES))


def _absolute(directory: str | None) -> Path | None:
    return Path(directory) if directory and directory.startswith("/") else None
