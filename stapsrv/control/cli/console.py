"""Prints answers: the original's lines for scripts, JSON for programs.

``status`` loads this module, so it is light. The table for terminals is in :mod:`stapsrv.control.cli.table`;
the output of commands in :mod:`stapsrv.control.cli.report`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from stapsrv.config.table import SERVER_SETTINGS
from stapsrv.text import printable, tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TextIO, TypedDict

    from stapsrv.control.protocol.status_fields import (
        ServerInfo,
        SettingsInfo,
        SupervisorFacts,
        SupervisorInfo,
    )

    class OrphanedServer(TypedDict):
        """A recorded server whose supervisor is gone; ``record`` is the file's path."""

        id: int
        settings: SettingsInfo
        record: str


PROGRAM = "stap-server"
NONE_RUNS = "No managed stap-server is running"

# By variable, in the original's order; the others follow in that of the table.
_ORDER = ("ARCH", "RELEASE", "RUNTIME", "DEFINE", "INCLUDE", "BUILD", "USER", "NICKNAME", "LOG")
_OPTIONS = dict.fromkeys(_ORDER, "") | {row.variable: row.option for row in SERVER_SETTINGS if row.option}
# The states of a server that should be up and does not serve.
_DOWN = frozenset({"failed", "backing-off"})
_FAILED = 1
_NOT_RUNNING = 3


class Console:
    """Writes to standard output and standard error; nothing else does."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err

    @property
    def is_terminal(self) -> bool:
        """Whether standard output is a terminal."""
        return self._out.isatty()

    def say(self, line: str) -> None:
        """Write a line to standard output."""
        self._out.write(f"{printable(line)}\n")

    def complain(self, *problems: str) -> None:
        """Write problems to standard error, each line after the program's name."""
        self._out.flush()
        for problem in problems:
            for line in problem.split("\n"):
                self._err.write(f"{PROGRAM}: {printable(line)}\n")
        self._err.flush()

    def write(self, text: str) -> None:
        """Write text to standard output as it is, and flush it."""
        self._out.write(text)
        self._out.flush()


class StatusReport(NamedTuple):
    """The answer of ``status``; :func:`status_json` says what its parts are."""

    supervisors: Sequence[SupervisorInfo]
    orphaned: Sequence[OrphanedServer] = ()
    remarks: Sequence[str] = ()
    problems: Sequence[str] = ()
    # In place of the one that follows from the rest.
    known_status: int | None = None

    @property
    def exit_status(self) -> int:
        """1 if a server should be up and is not, or a supervisor does not answer; 3 if no server runs."""
        if self.known_status is not None:
            return self.known_status
        if self.problems or self.orphaned or self.refused() or any(map(is_down, self.servers())):
            return _FAILED
        return _NOT_RUNNING if self.is_empty else 0

    @property
    def is_empty(self) -> bool:
        """Whether there is no server to show."""
        return not self.orphaned and not any(supervisor["servers"] for supervisor in self.supervisors)

    def refused(self) -> list[str]:
        """Return why configured servers are not hosted, a line each."""
        return [line for supervisor in self.supervisors for line in supervisor.get("refused", ())]

    def servers(self) -> Iterator[ServerInfo]:
        """Yield the servers of all supervisors."""
        for supervisor in self.supervisors:
            yield from supervisor["servers"]


def title(settings: Mapping[str, object]) -> str:
    """Return the original's name of a server: the program, and the options that would start it."""
    words = [PROGRAM]
    for variable, option in _OPTIONS.items():
        value = settings.get(variable)
        if value is not None:
            words += (
                f'{option} "{_escaped(one)}"' for one in (value if isinstance(value, list) else [value])
            )
    return " ".join(words)


def named(server: ServerInfo) -> SettingsInfo:
    """Return a server's settings with its nickname, which may be its id."""
    return {**server["settings"], "NICKNAME": server["nickname"]}


def is_down(server: ServerInfo) -> bool:
    """Whether a server should be up and does not serve."""
    return server["state"] in _DOWN


def status_lines(report: StatusReport) -> list[str]:
    """Return what ``status`` prints without a terminal."""
    lines = [f"{title(named(server))} {_running_as(server)}" for server in report.servers()]
    lines += (f"{title(lost['settings'])} {_was_running_as(lost['id'])}" for lost in report.orphaned)
    lines += report.remarks
    return lines or [NONE_RUNS]


def problem_lines(report: StatusReport) -> list[str]:
    """Return a line for each server that should be up and is not, and each release that one cannot serve."""
    down = report.refused() + [
        f"{server['nickname']}: {server['reason'] or 'is ' + server['state']}"
        for server in report.servers()
        if is_down(server)
    ]
    return down + [
        f"{server['nickname']}: cannot compile for {release['name']}: {release['reason']}"
        for server in report.servers()
        for release in server.get("releases", ())
        if release["health"] == "unhealthy"
    ]


def script_lines(supervisor: SupervisorFacts) -> list[str]:
    """Return a line for each release that collections of scripts were checked for."""
    new = supervisor.get("new_releases", ())
    return [
        f"Scripts for {name}{' (installed since the start)' if name in new else ''}: {tally(counts)}"
        for name, counts in supervisor.get("scripts", {}).items()
    ]


def status_json(report: StatusReport) -> str:
    """Return what ``status --json`` prints, a document with five members.

    * ``supervisors``: each supervisor with the servers asked for, as ``status`` in ``docs/control.md``;
    * ``lost``: recorded servers whose supervisor is gone: ``id``, ``settings`` and ``record``, the file's
      path; a supervisor that starts takes them over;
    * ``remarks``: texts about servers that were asked for and do not run;
    * ``problems``: texts about supervisors that do not answer;
    * ``exit_status``: the command's, 0, 1 or 3.
    """
    return encode_document(
        {
            "supervisors": report.supervisors,
            "lost": report.orphaned,
            "remarks": report.remarks,
            "problems": report.problems,
            "exit_status": report.exit_status,
        }
    )


def encode_document(document: Mapping[str, object]) -> str:
    """Return an indented JSON text that ends with a line feed."""
    return json.dumps(document, indent=2) + "\n"


def _escaped(value: object) -> str:
    # As the original does, so that a shell reads the value as it is.
    return str(value).replace("\\", "\\\\").replace('"', '\\"')


def _running_as(server: ServerInfo) -> str:
    return _was_running_as(server["id"]) if is_down(server) else f"running as PID {server['id']}"


def _was_running_as(server_id: int) -> str:
    return f"started as PID {server_id} is no longer running"
