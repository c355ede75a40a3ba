"""What a person at a terminal sees: a table of servers, and each server's way through a command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from stapsrv.control.cli.console import Console, down_reasons, health_remarks
from stapsrv.control.cli.report import Result, Verb
from stapsrv.text import printable

if TYPE_CHECKING:
    from stapsrv.control.cli.console import OrphanedServer, StatusReport
    from stapsrv.control.protocol.schema import ServerInfo

_GREEN, _YELLOW, _RED, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
_COLOURS = {"serving": _GREEN, "failed": _RED, "lost": _RED}
"""Of states; what is on its way is yellow."""
_ERASE_LINE = "\r\x1b[K"
_GAP = "  "
_NOTHING = "-"
_SETTLED = frozenset({"serving", "stopped", "failed", "backing-off"})
"""The states that end a server's line. Draining does not: it goes on until the last request is done."""


class _Column(NamedTuple):
    """A column of the table: its heading, what stands in it, and on which side.

    One that is not ``always`` there is left out where there is nothing in it.
    """

    heading: str
    cell: Callable[[ServerInfo], str]
    right: bool = False
    always: bool = True


def print_table(report: StatusReport, console: Console, environ: Mapping[str, str]) -> None:
    """Print a table of all servers, as :func:`status_table` has it."""
    now = datetime.now().astimezone()
    console.write("".join(f"{line}\n" for line in status_table(report, colour=_colours(environ), now=now)))


def terminal_width(environ: Mapping[str, str]) -> int:
    """Return the terminal's width in characters; 0 for one that cannot take back a line."""
    return 0 if _is_dumb(environ) else shutil.get_terminal_size().columns


def status_table(report: StatusReport, *, colour: bool, now: datetime) -> list[str]:
    """Return the lines of a table of all servers, and below it why those are down that are.

    Args:
        report: has at least one server.
        colour: mark the states.
        now: to show times of today as times; its zone is the one that times are shown in.
    """
    servers = [*report.servers(), *map(_as_server, report.orphaned)]
    columns = _columns(now)
    if len({_setting(server, "USER") for server in servers}) < 2:  # noqa: PLR2004 - nothing to tell apart
        columns = [column for column in columns if column.heading != "USER"]
    columns = [
        column
        for column in columns
        if column.always or any(column.cell(server) != _NOTHING for server in servers)
    ]
    rows = [[column.heading for column in columns]]
    rows += ([printable(column.cell(server)) for column in columns] for server in servers)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row, server in zip(rows, (None, *servers), strict=True):
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        if colour and server is not None:
            state = [column.heading for column in columns].index("STATE")
            mark = _COLOURS.get(server["state"], _YELLOW)
            cells[state] = cells[state].replace(row[state], f"{mark}{row[state]}{_PLAIN}")
        lines.append(_GAP.join(cells).rstrip())
    told = (
        *down_reasons(report),
        *health_remarks(report),
        *_orphan_remarks(report.orphaned),
        *report.remarks,
        *_sandboxes(report),
    )
    reasons = [printable(reason) for reason in told]
    return [*lines, "", *reasons] if reasons else lines


class TerminalReporter:
    """Prints a line for each server: ``native: starting … serving on port 5001``.

    A line is printed when its server has come to rest. Until then the terminal's last line, which is
    written anew again and again, shows who is on the way.

    Args:
        console: prints.
        width: of the terminal, in characters; 0 for one that cannot take back a line.
    """

    def __init__(self, console: Console, *, width: int) -> None:
        self._console = console
        self._width = width
        self._shown = False
        self._verb = Verb.START
        self._on_way: set[int] = set()
        self._told: set[int] = set()
        """Servers whose line is printed."""

    def begin(self, verb: Verb, names: Sequence[str]) -> None:
        """See :class:`~stapsrv.control.cli.report.Reporter`."""
        self._verb = verb
        self._told.clear()
        self._show(f"{', '.join(names)}: {verb.lower()} …")

    def step(self, server: ServerInfo) -> None:
        """See :class:`~stapsrv.control.cli.report.Reporter`."""
        if server["state"] in _SETTLED:
            self._on_way.discard(server["id"])
            self._told.add(server["id"])
            self._print(f"{server['nickname']}: {_way(self._verb, server)} {_state_words(server)}")
        else:
            self._on_way.add(server["id"])
            others = f" (and {len(self._on_way) - 1} more)" if len(self._on_way) > 1 else ""
            self._show(f"{server['nickname']}: {_state_words(server)}{others}")

    def result(self, result: Result) -> None:
        """See :class:`~stapsrv.control.cli.report.Reporter`."""
        server = result.server
        told = server is not None and server["id"] in self._told
        if not told and not self._is_first_half(result):
            verb = self._verb if self._verb is Verb.RESTART else result.verb
            self._print(f"{result.name}: {_result_words(result._replace(verb=verb))}")
        if result.error is not None:
            self.complain(f"{result.name}: {result.error}")

    def remark(self, line: str, *, done: bool | None = None) -> None:
        """See :class:`~stapsrv.control.cli.report.Reporter`."""
        self._print(f"{line}: FAILED" if done is False else line)

    def complain(self, text: str) -> None:
        """See :class:`~stapsrv.control.cli.report.Reporter`."""
        self._show("")
        self._console.complain(text)

    def finish(self, exit_status: int) -> None:  # noqa: ARG002 - a person has read what there is to know
        """See :class:`~stapsrv.control.cli.report.Reporter`."""
        self._show("")

    def _is_first_half(self, result: Result) -> bool:
        """Whether the result of a restart's second half is still to come, which says it all."""
        stopped = result.server is None or result.server["state"] != "stopping"
        return self._verb is Verb.RESTART and result.verb is Verb.STOP and result.error is None and stopped

    def _print(self, line: str) -> None:
        self._show("")
        self._console.say(line)

    def _show(self, line: str) -> None:
        """Let the terminal's last line be this one, until something else is to be shown."""
        if self._width and (line or self._shown):
            self._console.write(f"{_ERASE_LINE}{printable(line)[: self._width - 1]}")
            self._shown = bool(line)


def _colours(environ: Mapping[str, str]) -> bool:
    """Whether the terminal shall show colours (no-color.org)."""
    return not environ.get("NO_COLOR") and not _is_dumb(environ)


def _is_dumb(environ: Mapping[str, str]) -> bool:
    return environ.get("TERM", "dumb") == "dumb"


def _columns(now: datetime) -> list[_Column]:
    return [
        _Column("NICKNAME", lambda server: server["nickname"]),
        _Column("ID", lambda server: str(server["id"])),
        _Column("USER", lambda server: _setting(server, "USER")),
        _Column("RELEASE", lambda server: _setting(server, "RELEASE")),
        _Column("ARCH", lambda server: _setting(server, "ARCH")),
        _Column("PORT", lambda server: _number(server["port"]), right=True),
        _Column("STATE", lambda server: server["state"]),
        _Column("SINCE", lambda server: _moment(server["since"], now)),
        _Column("RUNNING", lambda server: _number(server["running"]), right=True),
        _Column("QUEUED", lambda server: _number(server["queued"]), right=True),
        _Column("DONE", lambda server: _number(server["done"]), right=True),
        _Column("FAILED", lambda server: _number(server["failed"]), right=True),
        _Column("KNOWN", _share_known, right=True, always=False),
        _Column("SHARED", _shared, right=True, always=False),
        _Column("WAIT", lambda server: _recent(server, "queue_s"), right=True, always=False),
        _Column("COMPILE", lambda server: _recent(server, "compile_s"), right=True, always=False),
        _Column("CERT UNTIL", lambda server: _moment(server["certificate_expires"], now)),
    ]


def _recent(server: ServerInfo, duration: Literal["queue_s", "compile_s"]) -> str:
    """Return the median of what requests waited for a worker, or stap took, of late."""
    recent = server.get("recent")
    seconds = None if recent is None else recent[duration]
    return _NOTHING if seconds is None else f"{seconds:.1f}s"


def _share_known(server: ServerInfo) -> str:
    """Return how many of the requests that stap could answer were answered from known results."""
    cache = server.get("cache")
    if cache is None or not cache["hits"]:
        return _NOTHING
    asked = cache["hits"] + cache["misses"] + cache["shared"]
    return f"{100 * cache['hits'] // asked}%"


def _shared(server: ServerInfo) -> str:
    """Return how many requests cost no compile, since an equal one was being compiled."""
    cache = server.get("cache")
    return _NOTHING if cache is None or not cache["shared"] else str(cache["shared"])


def _as_server(lost: OrphanedServer) -> ServerInfo:
    """Return the row of a server of which there is only a record."""
    settings = lost["settings"]
    port = settings.get("PORT")
    return {
        "id": lost["id"],
        "nickname": str(settings.get("NICKNAME", lost["id"])),
        "settings": settings,
        "origin": None,
        "wanted": "up",
        "state": "lost",
        "since": "",
        "reason": None,
        "port": port if isinstance(port, int) else None,
        "running": 0,
        "queued": 0,
        "done": 0,
        "failed": 0,
        "certificate_expires": None,
        "releases": [],
    }


def _sandboxes(report: StatusReport) -> list[str]:
    """Say what holds requests in, once for all supervisors that say the same."""
    names = dict.fromkeys(supervisor.get("sandbox") for supervisor in report.supervisors)
    words = {"off": "requests are not contained: SANDBOX=off"}
    return [words.get(name, f"requests are contained by {name}") for name in names if name is not None]


def _orphan_remarks(lost: Sequence[OrphanedServer]) -> list[str]:
    if not lost:
        return []
    return ["lost: the supervisor is gone without a word; stap-server start takes these servers up again"]


def _setting(server: ServerInfo, variable: str) -> str:
    value = server["settings"].get(variable, _NOTHING)
    return ", ".join(value) if isinstance(value, list) else str(value)


def _number(value: int | None) -> str:
    return _NOTHING if value is None else str(value)


def _moment(text: str | None, now: datetime) -> str:
    """Return the time of a moment of today, and the date of any other."""
    if not text:
        return _NOTHING
    moment = datetime.fromisoformat(text).astimezone(now.tzinfo)
    return f"{moment:%H:%M:%S}" if moment.date() == now.date() else f"{moment:%Y-%m-%d}"


def _way(verb: Verb, server: ServerInfo) -> str:
    """Say how a server came to where it is."""
    if verb is Verb.RELOAD:
        verb = Verb.STOP if server["state"] == "stopped" else Verb.START
    return f"{verb.lower()} …"


def _state_words(server: ServerInfo) -> str:
    """Say what a server is."""
    match server["state"]:
        case "serving":
            return f"serving on port {server['port']}"
        case "failed" | "backing-off":
            return "FAILED"
        case "stopped":
            return "stopped"
        case state:
            return f"{state} …"


def _result_words(result: Result) -> str:
    """Say what became of a server of which no step was told."""
    server = result.server
    if result.error is not None:
        return f"{result.verb.lower()} … FAILED"
    if result.already:
        return f"already {'stopped' if server is None else _state_words(server)}"
    if result.verb is Verb.DRAIN:
        return "draining … drained"
    words = "done" if server is None else _state_words(server)
    return words if words.endswith("…") else f"{result.verb.lower()} … {words}"
