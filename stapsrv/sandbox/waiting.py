"""How a contained program can wait for its command: what starts ``waiter.py``, and what that is told."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from stapsrv.sandbox.mechanisms import bare_python
from stapsrv.sandbox.view import View

READY = b"."
"""What it says once it waits."""
_WAITER = Path(__file__).with_name("waiter.py")


def waiting_command() -> tuple[str, ...]:
    """Return the command that waits for another; reads a file.

    Raises:
        OSError: it cannot be read.
    """
    # By its text: the file itself is not in sight.
    return (*bare_python(), "-c", _WAITER.read_text(encoding="utf-8"))


def can_wait(view: View) -> bool:
    """Whether Python, which waits, is to be seen there; looks at links."""
    needed = (bare_python()[0], os.__file__)
    places = (view.access(Path(os.path.realpath(path))) for path in needed)
    return all(access is not None and not access.is_hidden for access in places)


def told(command: Sequence[str | bytes], environ: Mapping[bytes, bytes]) -> bytes:
    """Return what makes the one who waits become ``command``; no item has a NUL in it."""
    words = [os.fsencode(word) for word in command]
    variables = [name + b"=" + value for name, value in environ.items()]
    return b"".join(item + b"\0" for item in (b"%d" % len(words), *words, *variables))
