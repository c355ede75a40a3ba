"""Symbolic links, followed one by one."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

_MAX_LINKS = 40
"""On the way of one path, as the kernel has it."""


@attrs.frozen
class Link:
    """A symbolic link on the way to something.

    Attributes:
        path: absolute; its directory is free of links.
        target: what the link holds.
    """

    path: Path
    target: str


def follow(path: Path) -> tuple[Path | None, tuple[Link, ...]]:
    """Follow a path through its links.

    Returns:
        What it leads to, free of links, or None if that does not exist; and the links on the way.
    """
    links: dict[Path, Link] = {}
    here, left, followed = Path("/"), list(reversed(path.absolute().parts[1:])), 0
    while left:
        part = left.pop()
        if part == "..":
            here = here.parent
            continue
        here /= part
        try:
            target = os.readlink(here)  # noqa: PTH115 - as it is written: a Path would change it
        except FileNotFoundError:
            return None, ()
        except OSError:  # no link; or not ours to look at, as the opening of it will show
            continue
        followed += 1
        if followed > _MAX_LINKS:
            return None, ()
        links[here] = Link(here, target)
        left += reversed([part for part in target.split("/") if part not in ("", ".")])
        here = Path("/") if target.startswith("/") else here.parent
    # Not Path.exists(), which raises where this user may not look.
    return (here if os.path.exists(here) else None), tuple(links.values())  # noqa: PTH110
