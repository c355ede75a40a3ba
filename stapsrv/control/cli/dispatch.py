"""Runs each action of ``stap-server`` in the module that implements it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module

from stapsrv import __version__
from stapsrv.control.cli.commands.status import show_status, status_of_all, status_of_some
from stapsrv.control.cli.console import PROGRAM, Console
from stapsrv.control.cli.help import usage
from stapsrv.control.cli.invocation import Action, Invocation, OutputForm
from stapsrv.control.cli.parser import parse_arguments
from stapsrv.control.cli.report import JsonReporter, Reporter

# Commands that are not about a supervisor's servers and parse their own options.
_TOOLS = {
    "bench": "stapsrv.bench.command",
    "browse": "stapsrv.control.cli.commands.browse",
    "cache": "stapsrv.control.cli.commands.cache",
    "cert": "stapsrv.control.cli.commands.cert",
    "doctor": "stapsrv.doctor.command",
    "mok": "stapsrv.control.cli.commands.mok",
    "report": "stapsrv.doctor.report",
    "top": "stapsrv.control.cli.commands.top",
    "scripts": "stapsrv.control.cli.commands.scripts",
}


def dispatch(words: Sequence[str], console: Console, environ: Mapping[str, str]) -> int:
    """Run a command line; return the exit status.

    Raises:
        StapsrvError: it cannot be understood, or not be carried out at all.
    """
    if words[:1] == ["help"] and len(words) > 1:
        console.write(usage(words[1]))
        return 0
    if words and words[0] in _TOOLS:
        return import_module(_TOOLS[words[0]]).main(words[1:])  # type: ignore[no-any-return]
    invocation = parse_arguments(words, directory=_working_directory())
    match invocation.action:
        case Action.HELP:
            console.write(usage(words[1] if invocation.running_only else words[0]))
        case Action.VERSION:
            console.say(f"{PROGRAM} (stapsrv) {__version__}")
        case Action.STATUS:
            return _run_status(invocation, console, environ)
        # The imports are here because a status -c or a --help need none of it.
        case Action.CHECK:
            from stapsrv.control.cli.commands.check import run_check  # noqa: PLC0415

            return run_check(invocation, console, environ)
        case _:
            from stapsrv.control.cli.commands.lifecycle import run_command  # noqa: PLC0415

            return run_command(invocation, _reporter(invocation.output, console, environ), environ)
    return 0


def _run_status(invocation: Invocation, console: Console, environ: Mapping[str, str]) -> int:
    if invocation.watch:
        from stapsrv.control.cli.commands.watch import run_watch  # noqa: PLC0415 - see above

        return run_watch(invocation.config_file, invocation.output, console, environ)
    if invocation.specifications:
        report = status_of_some(invocation, environ)
    else:
        report = status_of_all(invocation.config_file, environ, answer_s=invocation.timeout_s)
    return show_status(report, invocation.output, console, environ)


def _reporter(form: OutputForm, console: Console, environ: Mapping[str, str]) -> Reporter:
    if form is OutputForm.JSON:
        return JsonReporter(console)
    if form is OutputForm.AUTO and console.is_terminal:
        from stapsrv.control.cli.table import TerminalReporter, terminal_width  # noqa: PLC0415

        return TerminalReporter(console, width=terminal_width(environ))
    return Reporter(console)


def _working_directory() -> str | None:
    """Return the working directory, or None if it is gone: relative paths are refused then."""
    try:
        return os.getcwd()  # noqa: PTH109 - a text is wanted
    except OSError:
        return None
