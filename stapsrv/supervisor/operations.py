"""Commands to a supervisor: what is wished for, who is told what meanwhile, and what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import attrs

from stapsrv.config.settings import ServerSettings
from stapsrv.supervisor.status import ServerStatus

Report = Callable[[ServerStatus], None]
"""Told of each change of a server that a command is about, until the command is done."""


@attrs.frozen
class ServerSpec:
    """A server that somebody wants.

    Attributes:
        settings: with all that depends on the host filled in.
        origin: the configuration file that it comes from, or None.
    """

    settings: ServerSettings
    origin: str | None = None


@attrs.frozen
class Outcome:
    """What became of one server that a command was about.

    Attributes:
        server: as it is now; None when it was refused before it had an id.
        already: it was as wanted before.
        error: why it is not as wanted, or None.
    """

    server: ServerStatus | None
    already: bool
    error: str | None


@attrs.define(eq=False)
class _Command:
    """A command under way, and the servers that it is about."""

    report: Report | None
    followed: set[int] = attrs.field(factory=set)


class CommandsUnderWay:
    """The commands that are not done yet.

    Args:
        ended: called each time that one is done.
    """

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._commands: list[_Command] = []

    def __len__(self) -> int:
        return len(self._commands)

    @contextlib.contextmanager
    def begin(self, report: Report | None) -> Iterator[set[int]]:
        """Have a command under way while the block runs.

        Args:
            report: of the command; None if nobody wants to be told.

        Returns:
            The ids of the servers whose changes are to be reported; to be added to.
        """
        command = _Command(report)
        self._commands.append(command)
        try:
            yield command.followed
        finally:
            self._commands.remove(command)
            self._ended()

    def tell(self, server_id: int, status: Callable[[], ServerStatus]) -> None:
        """Report a change of a server to the commands that are about it.

        Args:
            server_id: the server's.
            status: what it is now.
        """
        for command in self._commands:
            if command.report is not None and server_id in command.followed:
                command.report(status())
