"""The file system that a contained program sees, as a list of mounts. Pure.

Nothing exists but what the list names. Of two mounts, one below the other, the deeper one decides, so a
directory can be shown but for a part of it, and a part of that again. The list is in the order in which
mounts can be made: what lies deeper comes later.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from stapsrv.system.symlinks import Link


class Access(enum.Enum):
    """The access that a program has to the files of a mount."""

    READ = "read"
    WRITE = "write"
    EMPTY_DIRECTORY = "empty directory"
    EMPTY_FILE = "empty file"

    @property
    def is_hidden(self) -> bool:
        """Whether the mount only covers what the host has there."""
        return self not in _SHOWN


_SHOWN = (Access.READ, Access.WRITE)


@attrs.frozen(kw_only=True)
class MountPlan:
    """All that a contained program sees, beside ``/proc`` with its own processes and a small ``/dev``."""

    # Of files and directories with all below them, by paths that are absolute, free of links, and the host's
    # own. The shallow ones come first. No mount repeats what the one above it gives already, and no link lies
    # in a directory that a mount shows.
    mounts: Mapping[Path, Access]
    links: tuple[Link, ...]
    # The program's working directory.
    directory: Path
    network: bool

    @property
    def hidden(self) -> tuple[Path, ...]:
        """The paths that are mounted only to hide what would be visible without that."""
        return tuple(path for path, access in self.mounts.items() if access.is_hidden)

    def shows(self, path: Path) -> bool:
        """Whether a program sees what the host has at ``path``, as far as that is no link to elsewhere."""
        above = {path, *path.parents}
        return any(link.path in above for link in self.links) or _access(path, self.mounts) in _SHOWN


def plan_mounts(
    wanted: Mapping[Path, Access], links: Iterable[Link], *, directory: Path, network: bool
) -> MountPlan:
    """Sort mounts and links, and drop the redundant ones."""
    mounts: dict[Path, Access] = {}
    for path in sorted(wanted, key=_depth):
        access, above = wanted[path], _access(path, mounts)
        # What nothing shows needs no hiding.
        invisible = above is None or above.is_hidden
        if access is not above and not (invisible and access.is_hidden):
            mounts[path] = access
    # In a directory that is shown the host's own link is there.
    needed = {link.path: link for link in links if _access(link.path.parent, mounts) not in _SHOWN}
    ordered = tuple(needed[path] for path in sorted(needed, key=_depth))
    return MountPlan(mounts=mounts, links=ordered, directory=directory, network=network)


def _access(path: Path, mounts: Mapping[Path, Access]) -> Access | None:
    return next((mounts[above] for above in (path, *path.parents) if above in mounts), None)


def _depth(path: Path) -> tuple[int, str]:
    return len(path.parts), str(path)
