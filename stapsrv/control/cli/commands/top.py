"""``stap-server top``: a live view in the terminal. Textual, which draws it, is loaded last."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec

from stapsrv.control.cli.commands.common import LineParser, absolute_path, guarded
from stapsrv.control.cli.follow import sockets_to_follow
from stapsrv.errors import ConfigError

_PROGRAM = "stap-server top"
_INSTEAD = "use stap-server status --watch"
# Terminals that cannot move their cursor.
_DUMB = frozenset({"", "dumb", "unknown"})


@guarded(_PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-server top`` until it is left; return the exit status, 1 where it cannot be shown."""
    given = _parser().parse_args(argv)
    check_terminal(os.environ, is_terminal=sys.stdin.isatty() and sys.stdout.isatty())
    # Before the screen changes, where nobody would read of it.
    sockets_to_follow(given.config_file, os.environ)
    from stapsrv.control.cli.top.app import TopApp  # noqa: PLC0415 - see above

    app = TopApp(partial(sockets_to_follow, given.config_file, os.environ))
    app.run()
    return app.return_code or 0


def check_terminal(environ: Mapping[str, str], *, is_terminal: bool) -> None:
    """Raise ConfigError, which says what to do, where there is nothing to draw on or to draw with."""
    if not is_terminal or environ.get("TERM", "") in _DUMB:
        raise ConfigError("it needs a terminal that can move its cursor", remedy=_INSTEAD)
    if find_spec("textual") is None:
        raise ConfigError(
            "it needs Textual, which is not installed",
            remedy=f"install it (pip install 'stapsrv[top]'), or {_INSTEAD}",
        )


def _parser() -> LineParser:
    parser = LineParser(
        prog=_PROGRAM,
        description="Show servers and requests live in the terminal.",
        epilog=(
            f"example: {_PROGRAM}; keys: s sort, / filter, Enter a server's page with its log, d drain,"
            " u undrain, r restart, q quit; without a terminal: stap-server status --watch"
        ),
    )
    parser.add_argument(
        "-c",
        dest="config_file",
        type=absolute_path,
        metavar="FILE",
        help="a global configuration file, read after the default one",
    )
    return parser
