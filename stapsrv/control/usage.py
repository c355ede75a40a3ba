"""What ``stap-server help`` says: short, with an example, for the whole and for each action."""

from __future__ import annotations

import textwrap

from stapsrv.control.options import OPTIONS, Group, groups_of

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
