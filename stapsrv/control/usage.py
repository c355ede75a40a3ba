"""What ``stap-server help`` says: short, with an example, for the whole and for each action."""

from __future__ import annotations

import textwrap

from stapsrv.config.tunables import SERVER_TUNABLES

_ACTIONS = {
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
_ALIASES = {"try-restart": "condrestart"}

_DESCRIBING = """\
which server, or which servers:
  -n NICKNAME   the server of that nickname, running or configured
  -p ID         the running server that status shows as PID ID
  -i            one for each installed kernel release, with the -I -R -B -D -u before it
  -r RELEASE    a kernel release, or an absolute build tree; may be repeated
  -a ARCH       the target architecture
  -u USER       whom it runs as
  -I DIR  -R DIR  -B OPTION  -D NAME=VALUE
                tapsets, runtime, options for make, definitions
dealt out in turn to the servers named:
  --port N  --log FILE  --ssl DIR  --max-threads N  --max-request-size BYTES  --max-compressed-request BYTES
for the server described, and those that follow (docs/limits.md):
"""
_TUNING = textwrap.fill(
    "  ".join(f"{row.option} {row.kind.metavar}" for row in SERVER_TUNABLES),
    width=110,
    initial_indent="  ",
    subsequent_indent="  ",
    break_on_hyphens=False,
)
_STARTING = """\
for those that are started:
  -k            keep temporary directories
"""
_WAITING = """\
  --no-wait     return when it has begun; --wait, the default, when it is done
  --timeout S   wait no longer than S seconds; what was begun goes on
"""
_COMMON = """\
  -c FILE       a global configuration file, read after the default one
  --json        one JSON document; --classic: the original's lines, also on a terminal
"""


def usage(topic: str | None) -> str:
    """Return the help for an action, or for the whole.

    Args:
        topic: an action, or None; one that there is not counts as None.
    """
    action = _ALIASES.get(topic, topic) if topic is not None else None
    if action not in _ACTIONS:
        return _overview()
    what, example = _ACTIONS[action]
    words = "" if action == "reload" else " [SERVERS]"
    text = f"usage: stap-server {topic}{words} [options]\n\n{what[0].upper()}{what[1:]}.\n\n"
    if words:
        text += f"{_DESCRIBING}{_TUNING}\n"
    if action in {"start", "restart", "force-reload"}:
        text += _STARTING
    text += "\noptions:\n"
    if action not in {"status", "check"}:
        text += _WAITING
    return f"{text}{_COMMON}\nexample:\n  {example}\n"


def _overview() -> str:
    width = max(map(len, _ACTIONS))
    lines = [f"  {action:{width}}  {what.partition(';')[0]}" for action, (what, _) in _ACTIONS.items()]
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
            f"  {'browse':{width}}  show the servers that the network tells of",
            "",
            "stap-server ACTION --help tells more. Exit status: 0 done, 1 something failed, 2 bad usage,",
            "3 (status) not running.",
            "",
            "example:",
            "  stap-server start && stap-server status",
            "",
        ]
    )
