"""The servers of the configuration directory: one ``*.conf`` file each (manual page, CONFIGURATION)."""

from __future__ import annotations

from pathlib import Path

import attrs

from stapsrv.config.files import decode_config, server_settings_from
from stapsrv.config.settings import HostDefaults, ServerSettings
from stapsrv.errors import ConfigError

_SUFFIX = ".conf"


@attrs.frozen
class ConfiguredFile:
    """One file, and what it says.

    Attributes:
        path: the file.
        settings: of its server, or None when it cannot be used.
        fault: why not, or None.
    """

    path: Path
    settings: ServerSettings | None
    fault: ConfigError | None


def read_configured(directory: Path) -> tuple[ConfiguredFile, ...]:
    """Read every ``*.conf`` file of ``directory``, in order of their names; a bad one hinders no other.

    A directory that is missing holds none.

    Raises:
        ConfigError: the directory cannot be read.
    """
    try:
        names = sorted(path for path in directory.iterdir() if path.suffix == _SUFFIX)
    except FileNotFoundError:
        return ()
    except OSError as exc:
        raise ConfigError(
            f"cannot be read ({exc.strerror})",
            where=f"configuration directory {directory}",
            remedy="make it readable, or set CONFIG_PATH to another in the global configuration file",
        ) from exc
    return tuple(_read(path) for path in names)


def default_server(defaults: HostDefaults) -> ServerSettings:
    """Return what is started where nothing is configured: the host's release (manual page, ``start``)."""
    return ServerSettings().resolved(defaults)


def _read(path: Path) -> ConfiguredFile:
    where = str(path)
    try:
        text = decode_config(path.read_bytes(), where=where)
        return ConfiguredFile(path, server_settings_from(text, where=where), None)
    except ConfigError as exc:
        return ConfiguredFile(path, None, exc)
    except OSError as exc:
        fault = ConfigError(f"cannot be read ({exc.strerror})", where=where)
        return ConfiguredFile(path, None, fault)
