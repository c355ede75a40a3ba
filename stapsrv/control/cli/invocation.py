"""A command line of ``stap-server`` as values (:mod:`stapsrv.control.cli.parser` reads it).

Made of named tuples, so that a command that needs no attrs does not load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from stapsrv.config.setting import Setting
from stapsrv.config.table import SERVER_SETTINGS, Description

NICKNAME = Description.nickname.option
RELEASE = Description.releases.option
ARCH = Description.arch.option
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
    """What to do; ``try-restart`` is another word for ``condrestart``."""

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
    """How answers are printed; ``AUTO`` depends on whether a terminal reads them."""

    AUTO = "auto"
    JSON = "json"
    CLASSIC = "classic"


class TypedOption(NamedTuple):
    """An option and its value as typed; an empty value means the default."""

    option: str
    value: str


class ServerSpecification(NamedTuple):
    """The options that describe one server, or one for each installed release.

    Attributes:
        name: ``-n`` or ``-p``, or None.
        earlier: typed before ``name``: they count only where ``name`` is a new server's nickname.
        settings: the others, in order.
        each_release: ``-i``: what is described, once for each installed release; and once as it is, if it
            has a name or a release of its own.
    """

    name: TypedOption | None = None
    earlier: tuple[TypedOption, ...] = ()
    settings: tuple[TypedOption, ...] = ()
    each_release: bool = False


class Invocation(NamedTuple):
    """A command line, understood.

    Attributes:
        action: what to do.
        specifications: the servers specified; none leaves the choice to the action.
        lists: by option of :data:`LIST_OPTIONS`, the values for the servers in turn; None is the default.
        config_file: the last ``-c``, an absolute path, or None.
        keep_temporary: ``-k``, for all servers that are started.
        use_password: ``-P``, for all servers that are started.
        running_only: ``ctl``: speak to a running supervisor, start none.
        wait: return when the action is done, rather than when it is accepted.
        timeout_s: how long to wait, or None for as long as the supervisor's own deadlines.
        output: how the answer is printed.
    """

    action: Action
    specifications: tuple[ServerSpecification, ...] = ()
    lists: Mapping[str, tuple[object, ...]] = {}
    config_file: str | None = None
    keep_temporary: bool = False
    use_password: bool = False
    running_only: bool = False
    wait: bool = True
    timeout_s: float | None = None
    output: OutputForm = OutputForm.AUTO
