"""The file system that a contained program sees, as a list of mounts. Pure.

Nothing exists but what the list names. Of two mounts, one below the other, the deeper one decides, so a
directory can be shown but for a part of it, and a part of that again. The list is in the order in which
mounts can be made: what lies deeper comes later.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from pathlib import Path

import attrs

from stapsrv.system.symlinks import Link


class Access(enum.Enum):
    """What a program can do with the files of a mount."""

    READ = "read"
    WRITE = "write"
    EMPTY_DIRECTORY = "empty directory"
    EMPTY_FILE = "empty file"

    @property
    def is_hidden(self) -> bool:
        """Whether the mount only covers what the host has there."""
        return self not in _SHOWN


_SHOWN = (Access.READ, Access.WRITE)


@attrs.frozen
class MountPoint:
    """A file or directory with all below it; its path is absolute, free of links, and the host's own."""

    path: Path
    access: Access


@attrs.frozen(kw_only=True)
class MountPlan:
    """All that a contained program sees, beside ``/proc`` with its own processes and a small ``/dev``."""

    # The shallow ones come first. No mount repeats what the one above it gives already, and no link lies in a
    # directory that a mount shows.
    mounts: tuple[MountPoint, ...]
    links: tuple[Link, ...]
    # The program's working directory.
    directory: Path
    network: bool

    @property
    def hidden(self) -> tuple[Path, ...]:
        """The paths that are mounted only to hide what would be visible without that."""
        return tuple(mount.path for mount in self.mounts if mount.access.is_hidden)

    def shows(self, path: Path) -> bool:
        """Whether a program sees what the host has at ``path``, as far as that is no link to elsewhere."""
        above = {path, *path.parents}
        is_linked = any(link.path in above for link in self.links)
        return is_linked or _access(path, {mount.path: mount.access for mount in self.mounts}) in _SHOWN


def plan_mounts(
    mounts: Iterable[MountPoint], links: Iterable[Link], *, directory: Path, network: bool
) -> MountPlan:
    """Sort mounts and links, and drop the redundant ones; of several mounts at one path, the last counts."""
    wanted = {mount.path: mount for mount in mounts}
    kept: dict[Path, Access] = {}
    for mount in sorted(wanted.values(), key=_depth):
        above = _access(mount.path, kept)
        # What nothing shows needs no hiding.
        invisible = above is None or above.is_hidden
        if mount.access is not above and not (invisible and mount.access.is_hidden):
            kept[mount.path] = mount.access
    # In a directory that is shown the host's own link is there.
    needed = {link.path: link for link in links if _access(link.path.parent, kept) not in _SHOWN}
    return MountPlan(
        mounts=tuple(MountPoint(path, access) for path, access in kept.items()),
        links=tuple(sorted(needed.values(), key=_depth)),
        directory=directory,
        network=network,
    )


def _access(path: Path, mounts: dict[Path, Access]) -> Access | None:
    return next((mounts[above] for above in (path, *path.parents) if above in mounts), None)


def _depth(item: MountPoint | Link) -> tuple[int, str]:
    return len(item.path.parts), str(item.path)
