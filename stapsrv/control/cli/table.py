"""Output for a terminal: a table of servers, and each server's progress in a command."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from stapsrv.control.cli.console import Console, problem_lines, script_lines
from stapsrv.control.cli.report import Reporter, Result, Verb
from stapsrv.control.protocol.status_fields import Column, EngineInfo, ServerInfo, columns
from stapsrv.text import counted, printable

if TYPE_CHECKING:
    from stapsrv.control.cli.console import OrphanedServer, StatusReport

_GREEN, _YELLOW, _RED, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
# Of states; states in transition are yellow.
_COLOURS = {"serving": _GREEN, "failed": _RED, "lost": _RED}
_ERASE_LINE = "\r\x1b[K"
_GAP = "  "
_NOTHING = "-"
# Columns of these are left out where no server has a value; like numbers they are aligned right.
_OPTIONAL = frozenset({"seconds", "hit rate", "count"})
_RIGHT = _OPTIONAL | {"number"}
_ORPHANED = "lost: the supervisor is gone without a word; stap-server start takes these servers up again"
# Their sum is the number of lookups in the result cache.
_LOOKUPS = ("hits", "misses", "shared")
# The states that end a server's line. Draining does not: it lasts until the last request is done.
_SETTLED = frozenset({"serving", "stopped", "failed", "backing-off"})


def print_table(report: StatusReport, console: Console, environ: Mapping[str, str]) -> None:
    """Print a table of all servers; see :func:`status_table`."""
    now = datetime.now().astimezone()
    console.write("".join(f"{line}\n" for line in status_table(report, colour=_colours(environ), now=now)))


def terminal_width(environ: Mapping[str, str]) -> int:
    """Return the terminal's width in characters; 0 if it cannot erase a line."""
    return 0 if _is_dumb(environ) else shutil.get_terminal_size().columns


def status_table(report: StatusReport, *, colour: bool, now: datetime) -> list[str]:
    """Return a table of all servers, at least one, and below it why some are down, and what else there is.

    ``now`` shortens times of today, and has the time zone for all of them.
    """
    servers = [*report.servers(), *map(_as_server, report.orphaned)]
    shown: list[tuple[Column, list[str]]] = []
    for column, path in columns(ServerInfo):
        cells = [_cell(column, path, server, now) for server in servers]
        # One user has nothing to tell apart.
        is_empty = len(set(cells)) == 1 if column.heading == "USER" else set(cells) == {_NOTHING}
        if not (is_empty and (column.format in _OPTIONAL or column.heading == "USER")):
            shown.append((column, cells))
    rows = zip(*((column.heading, *cells) for column, cells in shown), strict=True)
    right = [position for position, (column, _) in enumerate(shown) if column.format in _RIGHT]
    lines = aligned([*rows], right=right)
    if colour:
        start = lines[0].index("STATE")
        lines[1:] = [
            _coloured(line, server["state"], start) for line, server in zip(lines[1:], servers, strict=True)
        ]
    remarks = (
        *problem_lines(report),
        *([_ORPHANED] if report.orphaned else []),
        *report.remarks,
        *_sandboxes(report),
        *_engines(report, now),
        *(line for supervisor in report.supervisors for line in script_lines(supervisor)),
    )
    return [*lines, "", *map(printable, remarks)] if remarks else lines


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Return rows of cells as lines with aligned columns; ``right`` positions are aligned right."""
    cells = [[printable(cell) or _NOTHING for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        _GAP.join(
            cell.rjust(width) if position in right else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


class TerminalReporter(Reporter):
    """Prints a line for each server when it has settled: ``native: starting … serving on port 5001``.

    Until then the last line, rewritten again and again, shows the servers in transition.
    """

    def __init__(self, console: Console, *, width: int) -> None:
        super().__init__(console)
        self._width = width
        self._shown = False
        self._verb = Verb.START
        self._in_transition: set[int] = set()
        # Servers whose line is printed.
        self._printed: set[int] = set()

    def begin(self, verb: Verb, names: Sequence[str]) -> None:
        """See :class:`~stapsrv.control.cli.report.Reporter`."""
        self._verb = verb
        self._printed.clear()
        self._show(f"{', '.join(names)}: {verb.lower()} …")

    def step(self, server: ServerInfo) -> None:
        """See :class:`~stapsrv.control.cli.report.Reporter`."""
        if server["state"] in _SETTLED:
            self._in_transition.discard(server["id"])
            self._printed.add(server["id"])
            self._print(f"{server['nickname']}: {_progress_words(self._verb, server)} {_state_words(server)}")
        else:
            self._in_transition.add(server["id"])
            others = f" (and {len(self._in_transition) - 1} more)" if len(self._in_transition) > 1 else ""
            self._show(f"{server['nickname']}: {_state_words(server)}{others}")

    def result(self, result: Result) -> None:
        """See :class:`~stapsrv.control.cli.report.Reporter`."""
        server = result.server
        printed = server is not None and server["id"] in self._printed
        if not printed and not self._is_first_half(result):
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
        """Whether a restart's second half is still to come, which says it all."""
        stopped = result.server is None or result.server["state"] != "stopping"
        return self._verb is Verb.RESTART and result.verb is Verb.STOP and result.error is None and stopped

    def _print(self, line: str) -> None:
        self._show("")
        self._console.say(line)

    def _show(self, line: str) -> None:
        """Let the terminal's last line be this one, until something else is shown."""
        if self._width and (line or self._shown):
            self._console.write(f"{_ERASE_LINE}{printable(line)[: self._width - 1]}")
            self._shown = bool(line)


def _colours(environ: Mapping[str, str]) -> bool:
    return not environ.get("NO_COLOR") and not _is_dumb(environ)


def _is_dumb(environ: Mapping[str, str]) -> bool:
    return environ.get("TERM", "dumb") == "dumb"


def _cell(column: Column, path: Sequence[str], server: ServerInfo, now: datetime) -> str:
    value: object = server
    container: Mapping[str, Any] = {}
    for name in path:
        container = cast(Mapping[str, Any], value or {})
        value = container.get(name)
    if column.format == "variable":
        value = cast(Mapping[str, object], value).get(column.heading)
    if value is None or (not value and column.format in {"hit rate", "count"}):
        return _NOTHING
    match column.format:
        case "moment":
            return _moment(str(value), now)
        case "seconds":
            return f"{value:.1f}s"
        case "hit rate":
            return f"{100 * container['hits'] // sum(container[name] for name in _LOOKUPS)}%"
        case _:
            return ", ".join(value) if isinstance(value, list) else str(value)


def _coloured(line: str, state: str, start: int) -> str:
    """Return a line of the table with its state coloured, which begins at ``start``."""
    end = start + len(printable(state))
    return f"{line[:start]}{_COLOURS.get(state, _YELLOW)}{line[start:end]}{_PLAIN}{line[end:]}"


def _as_server(lost: OrphanedServer) -> ServerInfo:
    """Return what the columns show of an orphaned server."""
    settings = lost["settings"]
    info = {
        "id": lost["id"],
        "nickname": str(settings.get("NICKNAME", lost["id"])),
        "settings": settings,
        "state": "lost",
        "port": settings.get("PORT"),
        **dict.fromkeys(("running", "queued", "done", "failed"), 0),
    }
    return cast(ServerInfo, info)


def _sandboxes(report: StatusReport) -> list[str]:
    names = dict.fromkeys(supervisor.get("sandbox") for supervisor in report.supervisors)
    words = {"off": "requests are not contained: SANDBOX=off"}
    failures = dict.fromkeys(
        failure for supervisor in report.supervisors for failure in supervisor.get("sandbox_failures", ())
    )
    return [
        *(f"installed, and does not work here: {failure}" for failure in failures),
        *(words.get(name, f"requests are contained by {name}") for name in names if name is not None),
    ]


def _engines(report: StatusReport, now: datetime) -> list[str]:
    """Return two lines for each farm, which several servers may share."""
    found = {
        (engine["name"], engine["address"]): engine for engine in map(_engine, report.servers()) if engine
    }
    return [line for engine in found.values() for line in _engine_lines(engine, now)]


def _engine(server: ServerInfo) -> EngineInfo | None:
    return server.get("engine")


def _engine_lines(engine: EngineInfo, now: datetime) -> list[str]:
    since = _moment(engine["since"], now)
    where = f"{engine['name']} at {engine['address']}"
    troubles = ""
    if engine["retries"] or engine["lost_workers"]:
        lost, again = counted(engine["lost_workers"], "worker"), counted(engine["retries"], "job")
        troubles = f"; {lost} lost, {again} tried again"
    if not engine["connected"]:
        reason = engine["reason"] or "the connection is lost"
        waiting = counted(engine["waiting"], "waiting job")
        return [f"{where}: not connected since {since}: {reason}; {waiting}{troubles}"]
    workers, slots = counted(engine["workers"], "worker"), counted(engine["slots"], "slot")
    jobs = f"{counted(engine['running'], 'job')} running, {engine['waiting']} waiting{troubles}"
    return [
        f"{where}: connected since {since}, {workers} with {slots}; {jobs}",
        f"{where}: compiles for {', '.join(engine['releases']) or 'no release'}",
    ]


def _moment(text: str, now: datetime) -> str:
    moment = datetime.fromisoformat(text).astimezone(now.tzinfo)
    return f"{moment:%H:%M:%S}" if moment.date() == now.date() else f"{moment:%Y-%m-%d}"


def _progress_words(verb: Verb, server: ServerInfo) -> str:
    if verb is Verb.RELOAD:
        verb = Verb.STOP if server["state"] == "stopped" else Verb.START
    return f"{verb.lower()} …"


def _state_words(server: ServerInfo) -> str:
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
    server = result.server
    if result.error is not None:
        return f"{result.verb.lower()} … FAILED"
    if result.already:
        return f"already {'stopped' if server is None else _state_words(server)}"
    if result.verb is Verb.DRAIN:
        return "draining … drained"
    words = "done" if server is None else _state_words(server)
    return words if words.endswith("…") else f"{result.verb.lower()} … {words}"
