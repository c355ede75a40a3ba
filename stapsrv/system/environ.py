"""The environment as this program was started with it. A light module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_COERCED = "LC_CTYPE"
_STARTED_WITH = Path("/proc/self/environ")


def started_environ(environ: Mapping[str, str], *, started_with: Path = _STARTED_WITH) -> dict[str, str]:
    """Return ``environ`` without what Python itself added to it: ``LC_CTYPE``, in the C locale.

    Whoever is started from here is to see the locale that the administrator chose, and no other.

    Args:
        environ: of this process, as it is now.
        started_with: the environment that the kernel gave it; where that cannot be read, all is kept.

    Source: PEP 538 (coercion of the C locale).
    """
    own = dict(environ)
    if _COERCED in own:
        try:
            given = started_with.read_bytes()
        except OSError:
            return own
        if not any(line.startswith(b"LC_CTYPE=") for line in given.split(b"\0")):
            del own[_COERCED]
    return own
