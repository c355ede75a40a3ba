"""Symbolic links, followed one by one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

# On the way of one path; the kernel's limit.
_MAX_LINKS = 40


class Link(NamedTuple):
    """A symbolic link: its absolute path, whose directory is free of links, and what it holds."""

    path: Path
    target: str


def follow(path: Path) -> tuple[Path | None, tuple[Link, ...]]:
    """Return where a path leads, free of links, or None if that does not exist; and the links on the way."""
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
        except OSError:  # not a link; or not readable, as opening it will show
            continue
        followed += 1
        if followed > _MAX_LINKS:
            return None, ()
        links[here] = Link(here, target)
        left += reversed([part for part in target.split("/") if part not in ("", ".")])
        here = Path("/") if target.startswith("/") else here.parent
    # Not Path.exists(), which raises where this user may not look.
    return (here if os.path.exists(here) else None), tuple(links.values())  # noqa: PTH110
