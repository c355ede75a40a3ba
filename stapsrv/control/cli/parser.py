"""The command line of ``stap-server ACTION [options]``: words in, one value out.

The order of the options means something, so the result keeps it as far as it does:

* The options that describe a server (``-a -r -I -R -B -D -u``, and the long ones that tune it) describe the
  same one, however many are typed; those of arrays add up.
* ``-n`` and ``-p`` name a server whose settings take the place of what described this one before; what
  follows overrides them. A second ``-n`` or ``-p`` begins a further server.
* ``-i`` means one server for each installed release, with the ``-I -R -B -D -u`` typed before it. What
  follows describes a further server if ``-r``, ``-n`` or ``-p`` names one, else those of ``-i``, too.
* All but ``-a`` and ``-r`` stay in force for further servers (manual page: "the server(s)"); see
  :mod:`stapsrv.control.cli.targets`.
* ``--log --port --ssl --max-threads --max-request-size --max-compressed-request`` make lists, of which each
  server gets one value in turn when the servers are known.

Source: manual page, OPTIONS. The original of 4.8 takes a whole command line for one server: a second
``-n`` replaces the first, and ``-i`` makes one server of all releases (older ones did as the manual page
says). Its check lets ``-rX`` and ``--port=X`` pass and its parser then refuses them; here a value may be
attached or separate. ``-k`` and ``-P`` swallow the next word there, here not.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Sequence
from pathlib import Path

from stapsrv.config.files import unwritable_reason
from stapsrv.config.kinds import BLANKS
from stapsrv.config.option_parser import Append, OptionParser
from stapsrv.config.table import Description
from stapsrv.control.cli.help import OPTIONS
from stapsrv.control.cli.invocation import (
    DESCRIBING_OPTIONS,
    LIST_OPTIONS,
    NICKNAME,
    PID,
    RELEASE,
    Action,
    Invocation,
    OutputForm,
    ServerSpecification,
    TypedOption,
)
from stapsrv.errors import UsageError
from stapsrv.text import nearest

_ROWS = {**DESCRIBING_OPTIONS, **LIST_OPTIONS}
_PATHS = {"-c", *(option for option, row in _ROWS.items() if row.kind.is_path)}
# An element of these cannot be empty: the file that records the server would read it as none.
_NEVER_EMPTY = {NICKNAME, PID, "-c", "--timeout", *(row.option for row in Description.rows if row.array)}
_CONTROL = "ctl"
_ACTIONS = {str(action): action for action in Action} | {
    "try-restart": Action.CONDRESTART,
    "--help": Action.HELP,
    "--version": Action.VERSION,
}


def parse_arguments(words: Sequence[str], *, directory: str | None) -> Invocation:
    """Read a command line, without the program's name.

    ``directory``, the caller's, makes relative paths absolute: the supervisor that will use them has another
    one. None refuses them.

    Raises:
        UsageError: it cannot be understood; the text names the option.
    """
    running_only = bool(words) and words[0] == _CONTROL
    if running_only:
        words = words[1:]
    reader = _Reader(_parse_action(words), directory)
    for option, value in _parser().read(words[1:]).typed:
        reader.take(option, value)
    invocation = reader.finish()._replace(running_only=running_only)
    if invocation.action is Action.RELOAD and invocation.specifications:
        problem = "reload takes no servers: it makes the running ones those that are configured"
        raise UsageError(problem, remedy="name none, or restart those that you mean")
    if invocation.watch:
        _check_watch(invocation)
    return invocation


def _check_watch(invocation: Invocation) -> None:
    if invocation.action is Action.HELP:
        return
    if invocation.action is not Action.STATUS:
        raise UsageError("--watch is an option of status alone")
    if invocation.specifications or invocation.lists:
        raise UsageError("status --watch takes no servers: it tells of all", remedy="name none")
    if invocation.timeout_s is not None or invocation.output is OutputForm.CLASSIC:
        problem = "status --watch has no end and no classic form"
        raise UsageError(problem, remedy="leave out --timeout and --classic")


def _parser() -> OptionParser:
    parser = OptionParser(prog="stap-server", add_help=False, allow_abbrev=False)
    takes_value = {row.option: row.metavar is not None for row in OPTIONS} | {"--version": False}
    for option, takes in takes_value.items():
        parser.add_argument(option, action=Append, nargs=None if takes else 0)
    return parser


class _Reader:
    def __init__(self, action: Action, directory: str | None) -> None:
        self._invocation = Invocation(action)
        self._directory = directory
        self._specifications: list[ServerSpecification] = []
        self._open = ServerSpecification()
        self._lists: dict[str, tuple[object, ...]] = {}
        self._flags: list[str] = []

    def take(self, option: str, value: str | None) -> None:
        if value is None:
            self._flags.append(option)
            if option == "-i":
                self._open = self._open._replace(each_release=True)
                self._close()
            return
        # As from a file, where it will be recorded.
        value = value.rstrip(BLANKS)
        if option in _PATHS and value and self._directory is not None:
            # Not pathlib: an absolute path stays exactly as it was typed.
            value = os.path.join(self._directory, value)  # noqa: PTH118
        _check(option, value)
        parsed = _parsed(option, value)
        if option in LIST_OPTIONS:
            self._lists[option] = (*self._lists.get(option, ()), parsed)
        elif option == "-c":
            self._invocation = self._invocation._replace(config_file=Path(value))
        elif option == "--timeout":
            self._invocation = self._invocation._replace(timeout_s=_parse_timeout(value))
        elif option in (NICKNAME, PID):
            if self._open.name is not None:
                self._close()
            self._open = ServerSpecification(TypedOption(option, value), earlier=self._open.settings)
        else:
            settings = (*self._open.settings, TypedOption(option, value))
            self._open = self._open._replace(settings=settings)

    def _close(self) -> None:
        self._specifications.append(self._open)
        self._open = ServerSpecification()

    def _close_last(self) -> None:
        if self._open == ServerSpecification():
            return
        after_each = bool(self._specifications) and self._specifications[-1].each_release
        typed = [setting.option for setting in self._open.settings]
        if after_each and self._open.name is None and RELEASE not in typed:
            last = self._specifications.pop()
            self._open = last._replace(settings=(*last.settings, *self._open.settings))
        self._close()

    def finish(self) -> Invocation:
        flags = self._flags
        if "--json" in flags and "--classic" in flags:
            raise UsageError("--json and --classic exclude each other")
        shown = [_ACTIONS[flag] for flag in flags if flag in _ACTIONS]
        forms = [form for form in OutputForm if f"--{form}" in flags]
        waits = [flag == "--wait" for flag in flags if flag in ("--wait", "--no-wait")]
        self._close_last()
        return self._invocation._replace(
            action=shown[0] if shown else self._invocation.action,
            specifications=tuple(self._specifications),
            lists=self._lists,
            keep_temporary="-k" in flags,
            use_password="-P" in flags,
            wait=waits[-1] if waits else True,
            output=forms[0] if forms else OutputForm.AUTO,
            watch="--watch" in flags,
        )


def _parse_action(words: Sequence[str]) -> Action:
    listed = f"give one of {', '.join(Action)}"
    if not words:
        raise UsageError("no action given", remedy=listed)
    action = _ACTIONS.get(words[0])
    if action is not None:
        return action
    if words[0].startswith("-"):
        raise UsageError(f"{words[0]!r} comes before the action", remedy=f"first {listed}")
    meant = nearest(words[0], _ACTIONS)
    raise UsageError(f"unknown action {words[0]!r}", remedy=f"did you mean {meant}?" if meant else listed)


def _check(option: str, value: str) -> None:
    reason = unwritable_reason(value)
    if reason is not None:
        raise UsageError(f"the value {reason}", where=option)
    if option in _NEVER_EMPTY and value in ("", "()"):
        raise UsageError("needs a value", where=option)
    if value and option in _PATHS and not value.startswith("/"):
        raise UsageError(f"expected an absolute path, not {value!r}", where=option)


def _parsed(option: str, value: str) -> object:
    # None takes back what was typed before.
    if not value or option not in _ROWS:
        return None
    try:
        return _ROWS[option].kind.parse(value)
    except ValueError as exc:
        raise UsageError(f"expected {exc}, not {value!r}", where=option) from exc


def _parse_timeout(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"expected a number of seconds above 0, not {value!r}", where="--timeout")
    return seconds
