"""Help and tables of ``stap-server``: its options, its actions, and what ``--help`` prints.

The manual page and the shells' completion are made of the same tables; what the order of options means is in
:mod:`stapsrv.control.cli.parser`.
"""

from __future__ import annotations

import textwrap
from enum import StrEnum
from typing import Any, NamedTuple

from stapsrv.config.setting import Setting
from stapsrv.config.table import Description
from stapsrv.control.cli.invocation import DESCRIBING_OPTIONS, LIST_OPTIONS, NICKNAME


class Group(StrEnum):
    """The subject of an option; the value is a heading."""

    DESCRIBING = "which server, or which servers"
    LISTS = "dealt out in turn to the servers named"
    TUNING = "for the server described, and those that follow (docs/limits.md)"
    STARTING = "for those that are started"
    WAITING = "waiting"
    ASKING = "waiting for answers"
    WATCHING = "watching"
    COMMON = "options"


class OptionText(NamedTuple):
    """One option; its metavar is None if it takes no value, its text has no full stop."""

    option: str
    metavar: str | None
    text: str
    group: Group

    @classmethod
    def of(cls, row: Setting[Any], group: Group) -> OptionText:
        """Return the option of a setting."""
        repeated = "; may be repeated" if row.array and not row.tunable else ""
        return cls(row.option, row.kind.metavar, row.help + repeated, group)


_DESCRIBING = [row for row in DESCRIBING_OPTIONS.values() if row in Description.rows]

OPTIONS = (
    OptionText(NICKNAME, "NICKNAME", "the server of that nickname, running or configured", Group.DESCRIBING),
    OptionText("-p", "ID", "the running server that status shows as PID ID", Group.DESCRIBING),
    OptionText(
        "-i",
        None,
        "one for each installed kernel release, or, with one --port, one for all",
        Group.DESCRIBING,
    ),
    *(OptionText.of(row, Group.DESCRIBING) for row in _DESCRIBING),
    *(OptionText.of(row, Group.LISTS) for row in LIST_OPTIONS.values()),
    *(OptionText.of(row, Group.TUNING) for row in DESCRIBING_OPTIONS.values() if row.tunable),
    OptionText("-k", None, "keep temporary directories", Group.STARTING),
    OptionText("-P", None, "their certificate databases have a password, which is asked for", Group.STARTING),
    OptionText("--wait", None, "return when it is done (the default)", Group.WAITING),
    OptionText("--no-wait", None, "return when it has begun", Group.WAITING),
    OptionText("--timeout", "S", "wait no longer than S seconds; what was begun goes on", Group.WAITING),
    OptionText("--timeout", "S", "wait no longer than S seconds for each supervisor (10)", Group.ASKING),
    OptionText(
        "--watch", None, "print what changes until Ctrl-C; with --json, an object a line", Group.WATCHING
    ),
    OptionText("-c", "FILE", "a global configuration file, read after the default one", Group.COMMON),
    OptionText("--json", None, "print one JSON document", Group.COMMON),
    OptionText("--classic", None, "print the original's lines, also on a terminal", Group.COMMON),
    OptionText("--help", None, "show this help", Group.COMMON),
)


def groups_of(action: str) -> tuple[Group, ...]:
    """Return the groups of options that an action uses, in the order of its help."""
    groups: tuple[Group, ...] = ()
    if action != "reload":
        groups = (Group.DESCRIBING, Group.LISTS, Group.TUNING)
    if action in {"start", "restart", "force-reload"}:
        groups += (Group.STARTING,)
    waiting = Group.ASKING if action in {"status", "check"} else Group.WAITING
    watching = (Group.WATCHING,) if action == "status" else ()
    return (*groups, waiting, *watching, Group.COMMON)


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
        "stop all servers, read all configuration files again and start what is configured",
        "stap-server force-reload",
    ),
    "reload": ("start, stop or change only what the configuration says otherwise now", "stap-server reload"),
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
    """Return the help for an action; for the whole program where ``topic`` is none."""
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
    # The tunables are many, so their names are all that fits.
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
    actions = "\n".join(f"  {name:{width}}  {what.partition(';')[0]}" for name, (what, _) in ACTIONS.items())
    return f"""\
usage: stap-server ACTION [options]
       stap-server ctl ACTION [options]    only speak to what runs, start no supervisor

Manage SystemTap compile servers.

actions:
{actions}
  {"cert, mok":{width}}  look after a server's certificate, and its machine owner keys
  {"cache":{width}}  count, check or clear the results that servers keep
  {"top":{width}}  show servers and requests live in the terminal
  {"scripts":{width}}  check for which kernels a collection of scripts compiles
  {"browse":{width}}  show the servers that the network tells of
  {"bench":{width}}  measure a server under a bounded load
  {"doctor":{width}}  ask what stands between a client and its module, and say what to do
  {"report":{width}}  put what a bug report needs into one archive

stap-server ACTION --help tells more. Exit status: 0 done, 1 something failed, 2 bad usage,
3 (status) not running.

example:
  stap-server start && stap-server status
"""
