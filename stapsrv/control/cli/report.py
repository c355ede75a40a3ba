"""What is printed while something is done to servers, and what became of each.

The words are the original's, but for what it leaves out: why something failed, in one line on standard
error, after ``FAILED``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from stapsrv.control.cli.console import Console, encode_document, title

if TYPE_CHECKING:
    from stapsrv.control.protocol.status_fields import ServerInfo, SettingsInfo


class Verb(StrEnum):
    """What is done to a server, as the lines about it begin. Of a restart, both parts are told."""

    START = "Starting"
    STOP = "Stopping"
    RESTART = "Restarting"
    DRAIN = "Draining"
    UNDRAIN = "Undraining"
    RELOAD = "Reloading"


class Result(NamedTuple):
    """What became of one server.

    Attributes:
        verb: what was to be done.
        settings: its own, with its nickname; or those that were asked for.
        name: what people call it.
        server: as it is now; None if it was refused or is gone.
        already: it was as wanted before.
        error: why it is not as wanted, and what to do about it, or None.
    """

    verb: Verb
    settings: SettingsInfo
    name: str
    server: ServerInfo | None = None
    already: bool = False
    error: str | None = None


class Reporter(Protocol):
    """Tells a person or a program how a command goes."""

    def begin(self, verb: Verb, names: Sequence[str]) -> None:
        """Tell what is about to be done, and to whom."""

    def step(self, server: ServerInfo) -> None:
        """Tell that a server has changed."""

    def result(self, result: Result) -> None:
        """Tell what became of a server."""

    def remark(self, line: str, *, done: bool | None = None) -> None:
        """Tell of what is no single server's doing: a line, and whether what was asked for is done."""

    def complain(self, text: str) -> None:
        """Tell of a fault beside the servers that were meant; it may have several lines."""

    def finish(self, exit_status: int) -> None:
        """Tell the end."""


class ClassicReporter:
    """Prints the original's lines."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, verb: Verb, names: Sequence[str]) -> None:
        """See :class:`Reporter`; the original says it with the result."""

    def step(self, server: ServerInfo) -> None:
        """See :class:`Reporter`; the original says nothing in between."""

    def result(self, result: Result) -> None:
        """See :class:`Reporter`."""
        self.remark(f"{result.verb} {title(result.settings)}", done=result.error is None)
        if result.error is not None:
            self._console.complain(f"{result.name}: {result.error}")

    def remark(self, line: str, *, done: bool | None = None) -> None:
        """See :class:`Reporter`."""
        self._console.say(line)
        if done is not None:
            self._console.say("OK" if done else "FAILED")

    def complain(self, text: str) -> None:
        """See :class:`Reporter`."""
        self._console.complain(text)

    def finish(self, exit_status: int) -> None:
        """See :class:`Reporter`."""


class JsonReporter:
    """Prints one JSON document at the end.

    It is an object with four members:

    * ``servers``: an array of what became of each server: ``action`` (``start``, ``stop``, ``drain`` or
      ``undrain``), ``name``, ``settings`` (by the configuration files' names of variables), ``server`` (as
      it is now, see ``docs/control.md``, or null), ``already`` (it was as wanted before), and ``error``,
      a text or null;
    * ``remarks``: an array of texts that are no single server's;
    * ``problems``: an array of texts: faults beside the servers that were meant;
    * ``exit_status``: the command's.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._servers: list[dict[str, object]] = []
        self._remarks: list[str] = []
        self._problems: list[str] = []

    def begin(self, verb: Verb, names: Sequence[str]) -> None:
        """See :class:`Reporter`; what counts is the end."""

    def step(self, server: ServerInfo) -> None:
        """See :class:`Reporter`; what counts is the end."""

    def result(self, result: Result) -> None:
        """See :class:`Reporter`."""
        members = result._asdict()
        self._servers.append({"action": members.pop("verb").name.lower(), **members})

    def remark(self, line: str, *, done: bool | None = None) -> None:
        """See :class:`Reporter`."""
        (self._problems if done is False else self._remarks).append(line)

    def complain(self, text: str) -> None:
        """See :class:`Reporter`."""
        self._problems += text.split("\n")

    def finish(self, exit_status: int) -> None:
        """See :class:`Reporter`."""
        document = {
            "servers": self._servers,
            "remarks": self._remarks,
            "problems": self._problems,
            "exit_status": exit_status,
        }
        self._console.write(encode_document(document))
