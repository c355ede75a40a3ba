"""Where this user's supervisors are, and those of others whose status may be read. A light module."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

from stapsrv.config.global_settings import (
    SYSTEM_SETTINGS,
    GlobalSettings,
    can_write,
    global_defaults,
    read_global_settings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def own_settings(environ: Mapping[str, str], config_file: str | None) -> GlobalSettings:
    """Return the global settings for what this user starts.

    Args:
        environ: the environment variables.
        config_file: the last ``-c``, or None.

    Raises:
        ConfigError: a global file cannot be used.
    """
    home = environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir
    base = global_defaults(environ, euid=os.geteuid(), home=Path(home), can_write=can_write)
    return read_global_settings(base, _path(config_file))


def readable_stat_paths(own: GlobalSettings, config_file: str | None) -> list[Path]:
    """Return where to look for supervisors: this user's own place first.

    A plain user who cannot write the system's STAT_PATH has one of his own; who is in group stap-server
    may still ask the system's supervisors how they are.

    Raises:
        ConfigError: a global file cannot be used.
    """
    system = read_global_settings(SYSTEM_SETTINGS, _path(config_file)).stat_path
    return [own.stat_path] if own.stat_path == system else [own.stat_path, system]


def _path(config_file: str | None) -> Path | None:
    return None if config_file is None else Path(config_file)
