"""What each option of ``stap-server ACTION`` means: for its help, its manual page and the shells.

The order of options, and what they do, is :mod:`stapsrv.control.arguments`'s.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from stapsrv.config.tunables import SERVER_TUNABLES


class Group(StrEnum):
    """What an option is about; the value is a heading."""

    DESCRIBING = "which server, or which servers"
    DEALT = "dealt out in turn to the servers named"
    TUNING = "for the server described, and those that follow (docs/limits.md)"
    STARTING = "for those that are started"
    WAITING = "waiting"
    ASKING = "waiting for answers"
    COMMON = "options"


class OptionText(NamedTuple):
    """One option.

    Attributes:
        option: as it is typed.
        metavar: what stands for its value; None if it takes none.
        text: what it does, in a few words without a full stop.
        group: what it is about.
    """

    option: str
    metavar: str | None
    text: str
    group: Group


OPTIONS = (
    OptionText("-n", "NICKNAME", "the server of that nickname, running or configured", Group.DESCRIBING),
    OptionText("-p", "ID", "the running server that status shows as PID ID", Group.DESCRIBING),
    OptionText(
        "-i",
        None,
        "one for each installed kernel release, with the -I -R -B -D -u before it",
        Group.DESCRIBING,
    ),
    OptionText(
        "-r", "RELEASE", "a kernel release, or an absolute build tree; may be repeated", Group.DESCRIBING
    ),
    OptionText("-a", "ARCH", "the target architecture", Group.DESCRIBING),
    OptionText("-u", "USER", "whom it runs as", Group.DESCRIBING),
    OptionText("-I", "DIR", "a further directory with tapsets; may be repeated", Group.DESCRIBING),
    OptionText("-R", "DIR", "SystemTap's runtime", Group.DESCRIBING),
    OptionText("-B", "OPTION", "an option for make; may be repeated", Group.DESCRIBING),
    OptionText("-D", "NAME=VALUE", "a definition for the C preprocessor; may be repeated", Group.DESCRIBING),
    OptionText("--port", "N", "TCP port; 0: any free one", Group.DEALT),
    OptionText("--log", "FILE", "log file", Group.DEALT),
    OptionText("--ssl", "DIR", "certificate database", Group.DEALT),
    OptionText("--max-threads", "N", "requests compiled at the same time; 0: one at a time", Group.DEALT),
    OptionText("--max-request-size", "BYTES", "largest request, uncompressed", Group.DEALT),
    OptionText("--max-compressed-request", "BYTES", "largest request, as sent", Group.DEALT),
    *(OptionText(row.option, row.kind.metavar, row.help, Group.TUNING) for row in SERVER_TUNABLES),
    OptionText("-k", None, "keep temporary directories", Group.STARTING),
    OptionText("-P", None, "their certificate databases have a password, which is asked for", Group.STARTING),
    OptionText("--wait", None, "return when it is done (the default)", Group.WAITING),
    OptionText("--no-wait", None, "return when it has begun", Group.WAITING),
    OptionText("--timeout", "S", "wait no longer than S seconds; what was begun goes on", Group.WAITING),
    OptionText("--timeout", "S", "wait no longer than S seconds for each supervisor (10)", Group.ASKING),
    OptionText("-c", "FILE", "a global configuration file, read after the default one", Group.COMMON),
    OptionText("--json", None, "print one JSON document", Group.COMMON),
    OptionText("--classic", None, "print the original's lines, also on a terminal", Group.COMMON),
    OptionText("--help", None, "tell about the action", Group.COMMON),
)


def groups_of(action: str) -> tuple[Group, ...]:
    """Return which options an action takes notice of, in the order in which people read of them.

    Args:
        action: one of ``stap-server``'s that is about servers.
    """
    groups: tuple[Group, ...] = ()
    if action != "reload":
        groups = (Group.DESCRIBING, Group.DEALT, Group.TUNING)
    if action in {"start", "restart", "force-reload"}:
        groups += (Group.STARTING,)
    waiting = Group.ASKING if action in {"status", "check"} else Group.WAITING
    return (*groups, waiting, Group.COMMON)
