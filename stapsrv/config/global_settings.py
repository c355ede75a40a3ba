"""The global settings: the places of the service's files, and the defaults of all servers."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stapsrv.config.environment import retired_in, values_in
from stapsrv.config.files import decode_config, values_from, warnings_about
from stapsrv.config.table import GLOBAL_SETTINGS, Service
from stapsrv.config.tuning import NOTHING_SET, Tuning, with_tuning
from stapsrv.errors import ConfigError

if TYPE_CHECKING:
    from stapsrv.config.addresses import MetricsAddress
    from stapsrv.config.kinds import LogFormat

# Root's servers run as this user by default (manual page, -u).
SERVICE_USER = "stap-server"
# Read in this order where they exist; the second is Debian's.
DEFAULT_FILES = (Path("/etc/sysconfig/stap-server"), Path("/etc/default/stap-server"))


# A named tuple, not attrs: a plain status reads these settings, and prints before attrs would be loaded.
class GlobalSettings(NamedTuple):
    """The rows of :class:`~stapsrv.config.table.Service`, and what is set of the tunables.

    ``warnings`` has a line for each variable and option that has no effect any more, or whose value ends in
    blanks.
    """

    config_path: Path = Service.config_path.default
    stat_path: Path = Service.stat_path.default
    log_file: Path = Service.log_file.default
    log_format: LogFormat | None = None
    stap_user: str | None = None
    metrics: MetricsAddress | None = None
    web: bool = Service.web.default
    web_token_file: Path | None = None
    mdns_enabled: bool | None = None
    mdns_interfaces: tuple[str, ...] | None = None
    mdns_host: str | None = None
    tuning: Tuning = NOTHING_SET
    warnings: tuple[str, ...] = ()

    def default_user(self, invoker: str, *, euid: int) -> str:
        """Return the user that a server without one of its own runs as."""
        # Manual page, STAP_USER: the invoking user, and stap-server for the init script. That is, when root
        # asks, since no server runs as root.
        return self.stap_user or (SERVICE_USER if euid == 0 else invoker)


SYSTEM_SETTINGS = GlobalSettings()


def global_defaults(environ: Mapping[str, str]) -> GlobalSettings:
    """Return the settings before files: the system's paths, or a plain user's own for those he cannot write.

    That is the log in ``$XDG_STATE_HOME/stap-server`` (``~/.local/state``), and the state in
    ``$XDG_RUNTIME_DIR/stap-server``, or in ``run`` beside the log. Environment variables go before all.

    Raises:
        ConfigError: an environment variable's value is wrong.
    """
    if os.geteuid() == 0:
        return global_from_environ(environ)
    home = Path(environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)
    # XDG Base Directory Specification: relative values are ignored. The run-time directory has no default,
    # so without one the state goes beside the log: never to a name in /tmp that a stranger could have made.
    state = (_absolute(environ.get("XDG_STATE_HOME")) or home / ".local" / "state") / "stap-server"
    runtime = _absolute(environ.get("XDG_RUNTIME_DIR"))
    settings = SYSTEM_SETTINGS
    if not can_write(settings.stat_path):
        settings = settings._replace(stat_path=runtime / "stap-server" if runtime else state / "run")
    if not can_write(settings.log_file):
        settings = settings._replace(log_file=state / "log")
    return global_from_environ(environ, settings)


def global_from_environ(environ: Mapping[str, str], base: GlobalSettings = SYSTEM_SETTINGS) -> GlobalSettings:
    """Return ``base`` with what the environment says laid over it.

    Raises:
        ConfigError: a variable's value is wrong.
    """
    return with_values(base, values_in(environ, GLOBAL_SETTINGS), retired_in(environ))


def with_values(base: GlobalSettings, values: Mapping[str, Any], warnings: tuple[str, ...]) -> GlobalSettings:
    """Return ``base`` with values laid over it, which are by attribute, and with further warnings."""
    laid = base._replace(**with_tuning(values))
    return laid._replace(tuning=laid.tuning.over(base.tuning), warnings=(*base.warnings, *warnings))


def lay_over(base: GlobalSettings, text: str, *, where: str) -> GlobalSettings:
    """Return ``base`` with what the global file ``text`` sets; an empty value sets nothing.

    Raises:
        ConfigFaults: everything that is wrong with the file.
    """
    values = values_from(text, where=where, rows=GLOBAL_SETTINGS)
    return with_values(base, values, warnings_about(text, where=where))


def read_global_settings(defaults: GlobalSettings, config_file: Path | None) -> GlobalSettings:
    """Read the default files that exist, then ``config_file`` (the last ``-c``), each laid over those before.

    Raises:
        ConfigError: a file cannot be read or is wrong; only a default file may be missing.
    """
    settings = defaults
    for path in (*DEFAULT_FILES, *filter(None, [config_file])):
        where = str(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError as exc:
            if path is not config_file:
                continue
            remedy = "give -c a global configuration file"
            raise ConfigError("no such file", where=where, remedy=remedy) from exc
        except OSError as exc:
            raise ConfigError(f"cannot be read ({exc.strerror})", where=where) from exc
        settings = lay_over(settings, decode_config(data, where=where), where=where)
    return settings


def can_write(path: Path) -> bool:
    """Whether this process may write ``path``, or make it where it is missing."""
    existing = next(each for each in (path, *path.absolute().parents) if os.access(each, os.F_OK))
    return os.access(existing, os.W_OK | os.X_OK if existing.is_dir() else os.W_OK)


def _absolute(directory: str | None) -> Path | None:
    return Path(directory) if directory and directory.startswith("/") else None
