"""A command line of ``stap-server``, from its words to its exit status.

``status`` is what people and scripts type most, so a plain one loads next to nothing before it has printed
(DESIGN, light in the hand). Whatever needs more is in :mod:`stapsrv.control.dispatch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stapsrv.control.status import show_status, status_of_all
from stapsrv.errors import StapsrvError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stapsrv.control.output import Console

_INTERRUPTED = 130
"""As a shell says of a program that a signal ended."""


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
        from stapsrv.control.dispatch import dispatch  # noqa: PLC0415 - a plain status needs none of it

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
