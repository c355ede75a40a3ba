"""What a command line of ``stap-server`` says, as values (:mod:`stapsrv.control.cli.parser` reads it).

Each run of ``stap-server`` imports this module, so it is made of named tuples and needs no attrs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from stapsrv.config.tunables import SERVER_TUNABLES, Tunable


class Action(StrEnum):
    """What is to be done; ``try-restart`` is another word for ``condrestart``."""

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


class ServerOption(StrEnum):
    """An option that describes or names one server."""

    ARCH = "-a"
    RELEASE = "-r"
    INCLUDE = "-I"
    RUNTIME = "-R"
    BUILD = "-B"
    DEFINE = "-D"
    USER = "-u"
    NICKNAME = "-n"
    PID = "-p"


TUNING_OPTIONS: Mapping[str, Tunable] = {row.option: row for row in SERVER_TUNABLES}
"""The options that tune a server, typed like its :class:`ServerOption` ones."""


class OutputForm(StrEnum):
    """How answers are printed; ``AUTO`` looks at whether a terminal reads them."""

    AUTO = "auto"
    JSON = "json"
    CLASSIC = "classic"


class TypedOption(NamedTuple):
    """An option and its value; an empty value means the default. That a pid is a number is not checked.

    Attributes:
        option: a :class:`ServerOption`, or one of the :data:`TUNING_OPTIONS`.
        value: as it was typed.
    """

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


DealtValue: TypeAlias = str | int | None
"""A path or a number; None, an empty value, for the default of the server whose turn it is."""


class OptionLists(NamedTuple):
    """The options that are dealt out in turn, by the attribute of the settings that they set."""

    log: tuple[DealtValue, ...] = ()
    port: tuple[DealtValue, ...] = ()
    ssl: tuple[DealtValue, ...] = ()
    max_threads: tuple[DealtValue, ...] = ()
    max_request_bytes: tuple[DealtValue, ...] = ()
    max_compressed_bytes: tuple[DealtValue, ...] = ()


LIST_OPTIONS: Mapping[str, str] = {
    "log": "--log",
    "port": "--port",
    "ssl": "--ssl",
    "max_threads": "--max-threads",
    "max_request_bytes": "--max-request-size",
    "max_compressed_bytes": "--max-compressed-request",
}
"""The option of each of the :class:`OptionLists`."""


class Invocation(NamedTuple):
    """A command line, understood.

    Attributes:
        action: what is to be done.
        specifications: the servers specified; none leaves the choice to the action.
        lists: what is dealt out to them.
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
    lists: OptionLists = OptionLists()
    config_file: str | None = None
    keep_temporary: bool = False
    use_password: bool = False
    running_only: bool = False
    wait: bool = True
    timeout_s: float | None = None
    output: OutputForm = OutputForm.AUTO
