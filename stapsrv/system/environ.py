"""The environment that this program was started with. A light module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# The kernel keeps it as it was passed to execve(2).
_STARTED_WITH = Path("/proc/self/environ")


def started_environ(environ: Mapping[str, str], *, started_with: Path = _STARTED_WITH) -> dict[str, str]:
    """Return ``environ`` without the ``LC_CTYPE`` that Python itself adds in the C locale (PEP 538).

    Everything is kept where the environment that the kernel passed, ``started_with``, cannot be read.
    """
    # Children, such as compilers that translate their messages, are to see the locale that the administrator
    # chose.
    own = dict(environ)
    if "LC_CTYPE" in own:
        try:
            given = started_with.read_bytes()
        except OSError:
            return own
        if not any(line.startswith(b"LC_CTYPE=") for line in given.split(b"\0")):
            del own["LC_CTYPE"]
    return own
