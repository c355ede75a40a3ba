"""Commands to a supervisor: the servers that they ask for, reports on the way, and outcomes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import attrs

from stapsrv.config.settings import ServerSettings
from stapsrv.supervisor.status import ServerStatus

# Called with each change of a server of a command, until the command is done.
Report = Callable[[ServerStatus], None]


@attrs.frozen
class ServerSpec:
    """A server that is wanted: settings with all defaults filled in, and its configuration file, if any."""

    settings: ServerSettings
    origin: str | None = None


@attrs.frozen
class Outcome:
    """The outcome of a command for one server; ``already``: the server was as wanted before."""

    server: ServerStatus | None  # None if it was refused before it had an id
    already: bool
    error: str | None


@attrs.define(eq=False)
class _Command:
    report: Report | None
    followed: set[int] = attrs.field(factory=set)


class CommandsUnderWay:
    """The commands that are not done yet; calls ``ended`` each time that one is done."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._commands: list[_Command] = []

    def __len__(self) -> int:
        return len(self._commands)

    @contextlib.contextmanager
    def begin(self, report: Report | None) -> Iterator[set[int]]:
        """Have a command under way in the block; yields the set of ids to report, which the caller fills."""
        command = _Command(report)
        self._commands.append(command)
        try:
            yield command.followed
        finally:
            self._commands.remove(command)
            self._ended()

    def report_change(self, server_id: int, status: Callable[[], ServerStatus]) -> None:
        """Report a change of a server to the commands that follow it."""
        for command in self._commands:
            if command.report is not None and server_id in command.followed:
                command.report(status())
