"""Stand-ins for stap: small shell programs for the faults that the real one never shows."""

from __future__ import annotations

import textwrap
from pathlib import Path

from stapsrv.compile.protocol.options import STAP_4_8, OptionValue

VERSION = "Systemtap translator/driver (version 4.8/0.188, stand-in)"


def _patterns(value: OptionValue, suffix: str = "") -> str:
    return "|".join(f"--{name}{suffix}" for name, takes in STAP_4_8.long.items() if takes is value)


_NAMES = "".join(f" '--{name}'" for name in STAP_4_8.long)
_PREAMBLE = f"""\
#!/bin/sh
if [ "$1" = --version ]; then echo '{VERSION}' >&2; exit 0; fi
if [ "$1" = --client-options ]; then
    case "$2" in
    --=1) echo "stap: option '--=1' is ambiguous; possibilities:{_NAMES}";;
    {_patterns(OptionValue.NONE, "=1")}) echo "stap: option '${{2%=1}}' doesn't allow an argument";;
    {_patterns(OptionValue.OPTIONAL)}) echo "stap: option '--=1' is ambiguous; possibilities:";;
    {_patterns(OptionValue.REQUIRED)}) [ $# != 2 ] || echo "stap: option '$2' requires an argument";;
    esac >&2
    exit 1
fi
for argument; do
    case "$argument" in --tmpdir=*) answer=${{argument#--tmpdir=}};; esac
    script=$argument
done
"""

OBEDIENT = 'eval "$script"'
"""For :func:`make_stap`: each request's script is the shell's, and says what to do."""
MAKES = 'echo module >"$answer/stap_x.ko"; '
"""What a script begins with that is to make a module."""


def make_versioned_stap(path: Path, version: str) -> Path:
    """Write an executable that states a version, and can nothing else."""
    path.write_text(f"#!/bin/sh\necho 'Systemtap translator/driver (version {version}/0.188)'\n")
    path.chmod(0o755)
    return path


def make_stap(path: Path, script: str) -> Path:
    """Write an executable that states its version and its options as stap does and else runs ``script``.

    In it, ``$answer`` is the directory that ``--tmpdir`` names, and ``$script`` the last argument.
    """
    path.write_text(_PREAMBLE + textwrap.dedent(script))
    path.chmod(0o755)
    return path
