"""The children that this process has, as the kernel lists them."""

from __future__ import annotations

import contextlib
from pathlib import Path

_TASKS = Path("/proc/self/task")


def own_children() -> frozenset[int] | None:
    """Return the process ids of this process's children; None where the kernel does not tell."""
    children: set[int] = set()
    try:
        tasks = list(_TASKS.iterdir())
    except OSError:
        return None
    for task in tasks:
        # Of a thread that has just ended there are none.
        with contextlib.suppress(ProcessLookupError):
            try:
                children.update(map(int, (task / "children").read_text().split()))
            except FileNotFoundError:
                if task.exists():
                    return None
    return frozenset(children)
