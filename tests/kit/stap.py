"""Stand-ins for stap: small shell programs for the faults that the real one never shows."""

from __future__ import annotations

import textwrap
from pathlib import Path

VERSION = "Systemtap translator/driver (version 4.8/0.188, stand-in)"

_PREAMBLE = f"""\
#!/bin/sh
if [ "$1" = --version ]; then echo '{VERSION}' >&2; exit 0; fi
for argument; do
    case "$argument" in --tmpdir=*) answer=${{argument#--tmpdir=}};; esac
    script=$argument
done
"""

OBEDIENT = 'eval "$script"'
"""For :func:`make_stap`: each request's script is the shell's, and says what to do."""
MAKES = 'echo module >"$answer/stap_x.ko"; '
"""What a script begins with that is to make a module."""


def make_stap(path: Path, script: str) -> Path:
    """Write an executable that answers ``--version`` as stap does and else runs ``script``.

    In it, ``$answer`` is the directory that ``--tmpdir`` names, and ``$script`` the last argument.
    """
    path.write_text(_PREAMBLE + textwrap.dedent(script))
    path.chmod(0o755)
    return path
