"""How answers are printed: the original's lines, for whoever greps them, and JSON for programs.

A light module: ``status`` prints from here what the supervisors said, as it came off the wire. What a
person at a terminal sees instead is in :mod:`stapsrv.control.cli.table`; what is printed while something is
done, in :mod:`stapsrv.control.cli.report`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from stapsrv.config.tunables import SERVER_TUNABLES
from stapsrv.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import TextIO, TypedDict

    from stapsrv.control.protocol.status_fields import ServerInfo, SettingsInfo, SupervisorInfo

    class OrphanedServer(TypedDict):
        """A server that is on record, and whose supervisor is gone.

        Attributes:
            id: its id.
            settings: as recorded, with its nickname.
            record: the file's path.
        """

        id: int
        settings: SettingsInfo
        record: str


PROGRAM = "stap-server"
NONE_RUNS = "No managed stap-server is running"

_OPTIONS = (
    # In the original's order.
    ("ARCH", "-a"),
    ("RELEASE", "-r"),
    ("RUNTIME", "-R"),
    ("DEFINE", "-D"),
    ("INCLUDE", "-I"),
    ("BUILD", "-B"),
    ("USER", "-u"),
    ("NICKNAME", "-n"),
    ("LOG", "--log"),
    ("PORT", "--port"),
    ("SSL", "--ssl"),
    ("MAXTHREADS", "--max-threads"),
    ("MAXREQSIZE", "--max-request-size"),
    ("MAXCOMPRESSEDREQ", "--max-compressed-request"),
    *((row.variable, row.option) for row in SERVER_TUNABLES),
)
_DOWN = frozenset({"failed", "backing-off"})
"""The states of a server that should be up and serves nobody."""
_UNHEALTHY = "unhealthy"
_FAILED = 1
_NOT_RUNNING = 3


class Console:
    """The one place that writes.

    Args:
        out: standard output.
        err: standard error.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads standard output as it comes."""
        return self._out.isatty()

    def say(self, line: str) -> None:
        """Write a line to standard output."""
        self._out.write(f"{printable(line)}\n")

    def complain(self, text: str) -> None:
        """Write what went wrong to standard error, each line under the program's name."""
        self._out.flush()
        for line in text.split("\n"):
            self._err.write(f"{PROGRAM}: {printable(line)}\n")
        self._err.flush()

    def complain_each(self, texts: Iterable[str]) -> None:
        """Write several things that went wrong to standard error."""
        for text in texts:
            self.complain(text)

    def write(self, text: str) -> None:
        """Write to standard output as it is, at once."""
        self._out.write(text)
        self._out.flush()


class StatusReport:
    """What ``status`` has to tell.

    Args:
        supervisors: each with those of its servers that were asked about.
        lost: servers whose supervisor is gone.
        remarks: lines about those who were asked about and do not run.
        problems: a line for each supervisor that does not answer.
        exit_status: instead of the one that follows from the rest.

    Attributes:
        exit_status: 0; 1 for a server that should be up and is not, and for a supervisor that does not
            answer; 3 where none runs at all.
    """

    def __init__(
        self,
        supervisors: Sequence[SupervisorInfo],
        lost: Sequence[OrphanedServer] = (),
        remarks: Sequence[str] = (),
        *,
        problems: Sequence[str] = (),
        exit_status: int | None = None,
    ) -> None:
        self.supervisors = supervisors
        self.orphaned = lost
        self.remarks = remarks
        self.problems = problems
        self.exit_status = self._judged() if exit_status is None else exit_status

    @property
    def is_empty(self) -> bool:
        """Whether there is no server to show."""
        return not self.orphaned and not any(supervisor["servers"] for supervisor in self.supervisors)

    def servers(self) -> Iterator[ServerInfo]:
        """Give the servers of all supervisors."""
        for supervisor in self.supervisors:
            yield from supervisor["servers"]

    def _judged(self) -> int:
        if self.problems or self.orphaned or any(is_down(server) for server in self.servers()):
            return _FAILED
        return _NOT_RUNNING if self.is_empty else 0


def title(settings: Mapping[str, object]) -> str:
    """Return how the original calls a server: the program, and the options that would start it.

    Args:
        settings: by the configuration files' names of variables.
    """
    words = [PROGRAM]
    for variable, option in _OPTIONS:
        value = settings.get(variable)
        if value is not None:
            words += (f'{option} "{one}"' for one in (value if isinstance(value, list) else [value]))
    return " ".join(words)


def named(server: ServerInfo) -> SettingsInfo:
    """Return a server's settings with the nickname that it goes by, be it only its id."""
    return {**server["settings"], "NICKNAME": server["nickname"]}


def is_down(server: ServerInfo) -> bool:
    """Whether a server should be up and serves nobody."""
    return server["state"] in _DOWN


def status_lines(report: StatusReport) -> list[str]:
    """Return what ``status`` prints where no terminal reads it."""
    lines = [f"{title(named(server))} {_running_as(server)}" for server in report.servers()]
    lines += (f"{title(lost['settings'])} {_was_running_as(lost['id'])}" for lost in report.orphaned)
    lines += report.remarks
    return lines or [NONE_RUNS]


def down_reasons(report: StatusReport) -> list[str]:
    """Return a line for each server that should be up and is not: its nickname, and why."""
    return [
        f"{server['nickname']}: {server['reason'] or 'is ' + server['state']}"
        for server in report.servers()
        if is_down(server)
    ]


def health_remarks(report: StatusReport) -> list[str]:
    """Return a line for each release that a server cannot compile for: its nickname, and why."""
    return [
        f"{server['nickname']}: cannot compile for {release['name']}: {release['reason']}"
        for server in report.servers()
        for release in server.get("releases", ())
        if release["health"] == _UNHEALTHY
    ]


def status_json(report: StatusReport) -> str:
    """Return what ``status --json`` prints.

    The document is an object with five members:

    * ``supervisors``: an array of what each supervisor says of itself and of the servers asked about, as
      :class:`~stapsrv.control.protocol.schema.SupervisorInfo` describes it (``docs/control.md``, ``status``);
    * ``orphaned``: an array of the servers that are on record and whose supervisor is gone, each an object
      with ``id``, ``settings`` and ``record``, the file's path; a supervisor that starts takes them up again;
    * ``remarks``: an array of texts about servers that were asked about and do not run;
    * ``problems``: an array of texts about supervisors that do not answer;
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
    """Return a JSON text for people and programs, with its last line's end."""
    return json.dumps(document, indent=2) + "\n"


def _running_as(server: ServerInfo) -> str:
    return _was_running_as(server["id"]) if is_down(server) else f"running as PID {server['id']}"


def _was_running_as(server_id: int) -> str:
    return f"started as PID {server_id} is no longer running"
