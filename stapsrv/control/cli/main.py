"""``stap-server`` as a program: from its arguments to its exit status.

``status`` is what people and scripts type most, so a plain one loads next to nothing. All else is in
:mod:`stapsrv.control.cli.dispatch`.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stapsrv.errors import StapsrvError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from stapsrv.control.cli.console import Console

# As a shell reports a program that a signal ended.
_INTERRUPTED = 130


def run(words: Sequence[str], console: Console, environ: Mapping[str, str]) -> int:
    """Run a command line, the action and its options; return the exit status."""
    try:
        plain = _plain_status(words)
        if plain is not None:
            from stapsrv.control.cli.commands.status import show_status, status_of_all  # noqa: PLC0415 - see main

            form, config_file = plain
            return show_status(status_of_all(config_file, environ), form, console, environ)
        from stapsrv.control.cli.dispatch import dispatch  # noqa: PLC0415 - a plain status needs none of it

        return dispatch(words, console, environ)
    except StapsrvError as exc:
        console.complain(str(exc))
        return exc.exit_status
    except KeyboardInterrupt:
        console.complain("interrupted; what was begun goes on, as stap-server status shows")
        return _INTERRUPTED


def _plain_status(words: Sequence[str]) -> tuple[str, Path | None] | None:
    """Return the form and the file of ``status [-c FILE] [--json|--classic]``; None for all else."""
    # The parser takes long to import.
    form = "auto"
    config_file: Path | None = None
    rest = iter(words)
    if next(rest, None) != "status":
        return None
    for word in rest:
        if word in {"--json", "--classic"} and form == "auto":
            form = word[2:]
        elif word == "-c":
            config_file = Path(next(rest, ""))
            if not config_file.is_absolute():
                return None
        else:
            return None
    return form, config_file


def main() -> NoReturn:
    """Run ``stap-server`` with this program's arguments and exit (manual page; PROTOCOL 10).

    Exit status: 0 done; 1 something failed; 2 bad usage; 3 from ``status`` if a server that was asked for
    does not run, or none runs.
    """
    # Modules are no garbage: looking for some while they load would take a thirtieth of a status.
    gc.disable()
    from stapsrv.control.cli.console import PROGRAM, Console  # noqa: PLC0415 - see above
    from stapsrv.system.stdio import guard_stdout  # noqa: PLC0415

    with guard_stdout(PROGRAM):
        for stream in (sys.stdout, sys.stderr):
            # A name that the locale cannot write is no reason to fail.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        status = run(sys.argv[1:], Console(sys.stdout, sys.stderr), os.environ)
    # Taking all modules apart again would take an eighth of a status, and nothing is left to be closed.
    os._exit(status)


if __name__ == "__main__":
    main()
