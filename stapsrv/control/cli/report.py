"""Prints the progress and the outcome of commands.

The words are the original's, except for what it leaves out: the reason of a failure, on standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from stapsrv.control.cli.console import Console, encode_document, title

if TYPE_CHECKING:
    from stapsrv.control.protocol.status_fields import ServerInfo, SettingsInfo


class Verb(StrEnum):
    """The verbs with which lines begin; a restart reports both halves."""

    START = "Starting"
    STOP = "Stopping"
    RESTART = "Restarting"
    DRAIN = "Draining"
    UNDRAIN = "Undraining"
    RELOAD = "Reloading"


class Result(NamedTuple):
    """The outcome of one server."""

    verb: Verb
    # The server's, with its nickname; or those asked for.
    settings: SettingsInfo
    # For people.
    name: str
    # Its status now; None if it was refused or is gone.
    server: ServerInfo | None = None
    # It was as wanted before.
    already: bool = False
    # The reason and the remedy, or None.
    error: str | None = None


class Reporter:
    """Reports a command: here in the original's lines, which are about outcomes only."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, verb: Verb, names: Sequence[str]) -> None:
        """Report what is about to be done to which servers."""

    def step(self, server: ServerInfo) -> None:
        """Report a change of a server."""

    def result(self, result: Result) -> None:
        """Report an outcome."""
        self.remark(f"{result.verb} {title(result.settings)}", done=result.error is None)
        if result.error is not None:
            self.complain(f"{result.name}: {result.error}")

    def remark(self, line: str, *, done: bool | None = None) -> None:
        """Report a line that is not about one server, and whether the request is done."""
        self._console.say(line)
        if done is not None:
            self._console.say("OK" if done else "FAILED")

    def complain(self, text: str) -> None:
        """Report a problem; it may have several lines."""
        self._console.complain(text)

    def finish(self, exit_status: int) -> None:
        """Report the end."""


class JsonReporter(Reporter):
    """Prints one JSON document at the end.

    * ``servers``: an outcome each: ``action`` (``start``, ``stop``, ``drain`` or ``undrain``), ``name``,
      ``settings``, ``server`` (its status now or null, see ``docs/control.md``), ``already`` and ``error``;
    * ``remarks`` and ``problems``: texts that are not about one server;
    * ``exit_status``: the command's.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._document: dict[str, list[object]] = {"servers": [], "remarks": [], "problems": []}

    def result(self, result: Result) -> None:
        """See :class:`Reporter`."""
        members = result._asdict()
        self._document["servers"].append({"action": members.pop("verb").name.lower(), **members})

    def remark(self, line: str, *, done: bool | None = None) -> None:
        """See :class:`Reporter`."""
        self._document["problems" if done is False else "remarks"].append(line)

    def complain(self, text: str) -> None:
        """See :class:`Reporter`."""
        self._document["problems"] += text.split("\n")

    def finish(self, exit_status: int) -> None:
        """See :class:`Reporter`."""
        self._console.write(encode_document({**self._document, "exit_status": exit_status}))
