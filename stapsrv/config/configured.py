"""The configured servers: one ``*.conf`` file each (manual page, CONFIGURATION), or the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from stapsrv.config.compilation import Compilation
from stapsrv.config.environment import PREFIX, server_values, values_in
from stapsrv.config.files import decode_config, server_settings_from, warnings_about
from stapsrv.config.kernels import installed_releases
from stapsrv.config.settings import ServerSettings
from stapsrv.config.tuning import with_tuning
from stapsrv.errors import ConfigError

_SUFFIX = ".conf"
# In place of a release, in the environment: every one whose build tree is installed.
EACH_RELEASE = "installed"
# The "file" of a server that environment variables describe.
_ENVIRONMENT = Path("environment")


@attrs.frozen
class ConfiguredFile:
    """One file (or ``environment``): the settings of its server, or the reason why it cannot be used."""

    path: Path
    settings: ServerSettings | None
    fault: ConfigError | None
    warnings: tuple[str, ...] = ()


def read_configured_or_environ(directory: Path, environ: Mapping[str, str]) -> tuple[ConfiguredFile, ...]:
    """Read every ``*.conf`` file of ``directory``, by name; if there is none, the server of the environment.

    A bad file stops no other.

    Raises:
        ConfigError: the directory cannot be read, a variable is unknown or wrong, or no release is installed.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == _SUFFIX)
    except FileNotFoundError:
        paths = []
    except OSError as exc:
        where = f"configuration directory {directory}"
        remedy = "make it readable, or set CONFIG_PATH to another in the global configuration file"
        raise ConfigError(f"cannot be read ({exc.strerror})", where=where, remedy=remedy) from exc
    if paths:
        return tuple(map(_read, paths))
    described = server_values(environ)
    if not described:
        return ()
    # The global file's, too, but it says what the releases mean.
    described |= values_in(environ, [Compilation.engine])
    settings = ServerSettings(**with_tuning(described))
    return (ConfiguredFile(_ENVIRONMENT, with_each_release(settings), None),)


def with_each_release(settings: ServerSettings) -> ServerSettings:
    """Replace the release ``installed``, of the environment, by those that are.

    Where other hosts compile, they are those of these hosts, as without a name.

    Raises:
        ConfigError: it is wanted, and none is installed.
    """
    if settings.releases != (EACH_RELEASE,):
        return settings
    if not settings.compiles_here:
        return attrs.evolve(settings, releases=())
    installed = installed_releases()
    if not installed:
        where = f"{PREFIX}RELEASE={EACH_RELEASE}"
        remedy = "install kernel headers, or mount /lib/modules and /usr/src of a host that has them"
        raise ConfigError("there is no /lib/modules/RELEASE/build", where=where, remedy=remedy)
    return attrs.evolve(settings, releases=tuple(installed))


def _read(path: Path) -> ConfiguredFile:
    where = str(path)
    try:
        text = decode_config(path.read_bytes(), where=where)
        settings = server_settings_from(text, where=where)
        return ConfiguredFile(path, settings, None, warnings_about(text, where=where))
    except ConfigError as exc:
        return ConfiguredFile(path, None, exc)
    except OSError as exc:
        return ConfiguredFile(path, None, ConfigError(f"cannot be read ({exc.strerror})", where=where))
