"""What each option of ``stap-server ACTION`` means: for its help, its manual page and the shells.

The order of options, and what they do, is :mod:`stapsrv.control.cli.parser`'s.

What ``stap-server help`` says: short, with an example, for the whole and for each action.
"""

from __future__ import annotations

import textwrap
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


ACTIONS = {
    "start": (
        "start the servers named, or the configured ones, or one for this host's kernel",
        "stap-server start -r 6.1.0-56-amd64 -n native --port 5001",
    ),
    "stop": ("stop the servers named, or all that run", "stap-server stop -n native"),
    "restart": (
        "stop and start the servers named, or all that run; like start where none runs",
        "stap-server restart",
    ),
    "condrestart": (
        "restart those that run, and start no other (also: try-restart)",
        "stap-server condrestart -n native",
    ),
    "force-reload": (
        "stop all servers and start what the configuration says now; the unchanged ones lose no request",
        "stap-server force-reload",
    ),
    "reload": (
        "start, stop or change only what the configuration says otherwise now",
        "stap-server reload",
    ),
    "status": ("tell about the servers named, or all", "stap-server status --json"),
    "drain": (
        "let servers finish what they have and take nothing new; they stay known",
        "stap-server drain -n native --timeout 60",
    ),
    "undrain": ("let drained servers take requests again", "stap-server undrain -n native"),
    "check": (
        "read the whole configuration, start nothing, and tell of every problem with file and line",
        "stap-server check -c /etc/stap-server/new.conf",
    ),
}
ALIASES = {"try-restart": "condrestart"}


def usage(topic: str | None) -> str:
    """Return the help for an action, or for the whole.

    Args:
        topic: an action, or None; one that there is not counts as None.
    """
    action = ALIASES.get(topic, topic) if topic is not None else None
    if action not in ACTIONS:
        return _overview()
    what, example = ACTIONS[action]
    words = "" if action == "reload" else " [SERVERS]"
    text = f"usage: stap-server {topic}{words} [options]\n\n{what[0].upper()}{what[1:]}.\n\n"
    for group in groups_of(action):
        text += _options_of(group)
    return f"{text}\nexample:\n  {example}\n"


def _options_of(group: Group) -> str:
    """Return the lines of a group of options; the table of tunables, which is long, without its texts."""
    options = [
        (f"{row.option} {row.metavar}" if row.metavar else row.option, row.text)
        for row in OPTIONS
        if row.group is group
    ]
    if group is Group.TUNING:
        words = "  ".join(option for option, _ in options)
        filled = textwrap.fill(
            words, width=110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
        return f"{group}:\n{filled}\n"
    width = max(len(option) for option, _ in options)
    return "".join([f"{group}:\n", *(f"  {option:{width}}  {text}\n" for option, text in options)])


def _overview() -> str:
    width = max(map(len, ACTIONS))
    lines = [f"  {action:{width}}  {what.partition(';')[0]}" for action, (what, _) in ACTIONS.items()]
    return "\n".join(
        [
            "usage: stap-server ACTION [options]",
            "       stap-server ctl ACTION [options]    only speak to what runs, start no supervisor",
            "",
            "Manage SystemTap compile servers.",
            "",
            "actions:",
            *lines,
            f"  {'cert, mok':{width}}  look after a server's certificate, and its machine owner keys",
            f"  {'cache':{width}}  count, check or clear the results that servers keep",
            f"  {'browse':{width}}  show the servers that the network tells of",
            f"  {'doctor':{width}}  ask what stands between a client and its module, and say what to do",
            f"  {'report':{width}}  put what a bug report needs into one archive",
            "",
            "stap-server ACTION --help tells more. Exit status: 0 done, 1 something failed, 2 bad usage,",
            "3 (status) not running.",
            "",
            "example:",
            "  stap-server start && stap-server status",
            "",
        ]
    )
