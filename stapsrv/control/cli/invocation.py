"""A command line of ``stap-server`` as values (:mod:`stapsrv.control.cli.parser` reads it).

Made of named tuples, so that a command that needs no attrs does not load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from stapsrv.config.setting import Setting
from stapsrv.config.table import SERVER_SETTINGS, Description

NICKNAME = Description.nickname.option
RELEASE = Description.releases.option
ARCH = Description.arch.option
PORT = Description.port.option
PID = "-p"
# The servers named get one value each of these, in turn.
LIST_OPTIONS: Mapping[str, Setting[Any]] = {
    row.option: row for row in Description.rows if row.option.startswith("--")
}
# These describe a server, or tune it.
DESCRIBING_OPTIONS: Mapping[str, Setting[Any]] = {
    row.option: row
    for row in SERVER_SETTINGS
    if row.option and row.option != NICKNAME and row.option not in LIST_OPTIONS
}


class Action(StrEnum):
    """The action to take; ``try-restart`` is another word for ``condrestart``."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    CONDRESTART = "condrestart"
    FORCE_RELOAD = "force-reload"
    RELOAD = "reload"
    STATUS = "status"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    CHECK = "check"
    HELP = "help"
    VERSION = "version"


class OutputForm(StrEnum):
    """The form of the output; ``AUTO`` depends on whether it goes to a terminal."""

    AUTO = "auto"
    JSON = "json"
    CLASSIC = "classic"


class TypedOption(NamedTuple):
    """An option and its value as typed; an empty value means the default."""

    option: str
    value: str


class ServerSpecification(NamedTuple):
    """The options that describe one server, or one for each installed release."""

    # -n or -p.
    name: TypedOption | None = None
    # Typed before the name: they count only where it is a new server's nickname.
    earlier: tuple[TypedOption, ...] = ()
    settings: tuple[TypedOption, ...] = ()
    # -i: what is described for each installed release, and as it is if it has a name or release of its own.
    each_release: bool = False


class Invocation(NamedTuple):
    """A command line, understood; without specifications the action chooses the servers."""

    action: Action
    specifications: tuple[ServerSpecification, ...] = ()
    # By option of LIST_OPTIONS, the values for the servers in turn; None is the default.
    lists: Mapping[str, tuple[object, ...]] = {}
    config_file: Path | None = None
    keep_temporary: bool = False
    use_password: bool = False
    # ctl: speak to a running supervisor, start none.
    running_only: bool = False
    wait: bool = True
    # None for as long as the supervisor's own deadlines.
    timeout_s: float | None = None
    output: OutputForm = OutputForm.AUTO
    # status: go on, and print what changes.
    watch: bool = False
