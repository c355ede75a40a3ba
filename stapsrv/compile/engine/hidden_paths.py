"""Finds the programs that a request names and a compile does not see; stap only says ``no match``. Pure.

Nothing is looked up: whether a hidden path exists is not for clients to find out. So the same is said of one
that does and of one that does not, and it follows from the settings of the server alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from stapsrv.compile.protocol.options import ParsedOptions
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.sandbox.mount_plan import MountPlan

# Where a probe point names a program or a library.
_NAMED = re.compile(rb'\b(?:process|library)\s*\(\s*"(/[^"\\\n]{1,4000})"')
_SEARCHED_BYTES = 256 * 1024
_MOST = 3
# Of a compile's own, whatever the host has there.
_OWN = ("/proc", "/dev")


def hidden_paths(request: CompileRequest, parsed: ParsedOptions, plan: MountPlan) -> tuple[str, ...]:
    """Return the first paths that a request names and a plan does not show; none if nothing is contained."""
    if not plan.mounts:
        return ()
    found: dict[str, None] = {}
    for name in _named_paths(request, parsed):
        path = os.path.normpath(os.fsdecode(name))
        if not path.startswith(_OWN) and not plan.shows(Path(path)):
            found[path] = None
            if len(found) == _MOST:
                break
    return tuple(found)


def _named_paths(request: CompileRequest, parsed: ParsedOptions) -> Iterator[bytes]:
    left = _SEARCHED_BYTES
    texts = [value or b"" for name, value in parsed.options if name in {"e", "E"}]
    for text in (*texts, *(file.data for file in request.files)):
        yield from _NAMED.findall(text[: max(left, 0)])
        left -= len(text)
    # A module to look symbols up in, a command to run, and what the script's arguments are.
    values = [(value or b"").split(b" ")[0] for name, value in parsed.options if name in {"d", "c"}]
    yield from (word for word in (*values, *parsed.operands) if word.startswith(b"/"))
