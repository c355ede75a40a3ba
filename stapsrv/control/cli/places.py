"""Where this user's supervisors are, and those of others whose status may be read. A light module."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

from stapsrv.config.global_settings import (
    SYSTEM_SETTINGS,
    GlobalSettings,
    global_defaults,
    read_global_settings,
)
from stapsrv.control.client.whereabouts import noted_stat_path

if TYPE_CHECKING:
    from collections.abc import Mapping


def own_settings(environ: Mapping[str, str], config_file: Path | None) -> GlobalSettings:
    """Return the global settings for what this user starts; may raise ConfigError."""
    base = global_defaults(environ)
    # As the original: a variable of the environment that the files may change.
    base = base._replace(stap_user=environ.get("STAP_USER") or base.stap_user)
    return read_global_settings(base, config_file)


def own_stat_paths(
    own: GlobalSettings, config_file: Path | None, environ: Mapping[str, str]
) -> tuple[Path, ...]:
    """Return where this user's supervisors are: in STAT_PATH, or in the one before it was changed."""
    former = None
    with contextlib.suppress(KeyError):
        user = own.default_user(pwd.getpwuid(os.geteuid()).pw_name, euid=os.geteuid())
        former = noted_stat_path(user, config_file, environ)
    return (own.stat_path,) if former in {None, own.stat_path} else (own.stat_path, former)


def readable_stat_paths(
    own: GlobalSettings, config_file: Path | None, environ: Mapping[str, str]
) -> list[Path]:
    """Return the directories to search for supervisors, this user's own first; may raise ConfigError."""
    # A plain user who cannot write the system's STAT_PATH has one of his own. In group stap-server he may
    # still ask the system's supervisors for their status.
    system = read_global_settings(SYSTEM_SETTINGS, config_file).stat_path
    return list(dict.fromkeys((*own_stat_paths(own, config_file, environ), system)))
