"""``stap-server``: from the words of a command line to an exit status.

``status`` is what people and scripts type most, so a plain one imports next to nothing before it has
printed (DESIGN, light in the hand). Whatever needs more is in :mod:`stapsrv.control.dispatch`.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from stapsrv.control.output import Console
from stapsrv.control.status import show_status, status_of_all
from stapsrv.errors import StapsrvError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

_TOOLS = {"cert": "stapsrv.control.cert", "mok": "stapsrv.control.mok"}
"""Words that are no actions upon servers, each with a module whose ``main`` takes the words after it."""

_INTERRUPTED = 130
_BROKEN_PIPE = 141
"""As a shell says of a program that a signal ended."""


def main() -> NoReturn:
    """Run ``stap-server`` with this program's arguments and exit (manual page; PROTOCOL 10).

    Exit status: 0 done; 1 something failed; 2 bad usage; 3 from ``status`` when a server that was asked
    about does not run, or none runs.
    """
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - as light as it gets
        out, err = sys.stdout or nowhere, sys.stderr or nowhere
        for stream in (out, err):
            # A name that the locale cannot write is no reason to fail.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            status = run(sys.argv[1:], Console(out, err), os.environ)
            out.flush()
        except BrokenPipeError:
            status = _BROKEN_PIPE
    # Taking all modules apart again would cost a fifth of a status, and nothing is left to be closed.
    os._exit(status)


def run(words: Sequence[str], console: Console, environ: Mapping[str, str]) -> int:
    """Carry out a command line; returns the exit status.

    Args:
        words: the action, then the options.
        console: prints.
        environ: the environment variables.

    Raises:
        BrokenPipeError: nobody reads the output any more.
    """
    try:
        plain = _plain_status(words)
        if plain is not None:
            form, config_file = plain
            return show_status(status_of_all(config_file, environ), form, console, environ)
        if words and words[0] in _TOOLS:
            tool: Any = importlib.import_module(_TOOLS[words[0]])
            return int(tool.main(words[1:]))
        from stapsrv.control.dispatch import dispatch  # noqa: PLC0415 - see the module's docstring

        return dispatch(words, console, environ)
    except StapsrvError as exc:
        console.complain(str(exc))
        return exc.exit_status
    except KeyboardInterrupt:
        console.complain("interrupted; what was begun goes on, as stap-server status shows")
        return _INTERRUPTED


def _plain_status(words: Sequence[str]) -> tuple[str, str | None] | None:
    """Understand ``status [-c FILE] [--json|--classic]`` without the grammar, whose import would be felt.

    Returns:
        The form of the output, and the file; None for everything else, right or wrong.
    """
    form, config_file = "auto", None
    rest = iter(words)
    if next(rest, None) != "status":
        return None
    for word in rest:
        if word in {"--json", "--classic"} and form == "auto":
            form = word[2:]
        elif word == "-c":
            config_file = next(rest, "")
            if not config_file.startswith("/"):
                return None
        else:
            return None
    return form, config_file
