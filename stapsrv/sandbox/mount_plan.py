"""What a contained program sees of the file system: a description, from which nothing runs by itself.

Nothing exists but what the description names. Of two places, one below the other, the deeper one decides, so
a directory can be shown but for a part of it, and a part of that again. The order of the description is the
one in which mounts can be made: what lies deeper comes later.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from pathlib import Path

import attrs

from stapsrv.system.symlinks import Link


class Access(enum.Enum):
    """What can be done at a place."""

    READ = "read"
    WRITE = "write"
    EMPTY_DIRECTORY = "empty directory"
    """There is a directory, with nothing in it."""
    EMPTY_FILE = "empty file"

    @property
    def is_hidden(self) -> bool:
        """Whether the place is there only to cover what the host has."""
        return self in (Access.EMPTY_DIRECTORY, Access.EMPTY_FILE)


@attrs.frozen
class MountPoint:
    """A file or directory, with all below it.

    Attributes:
        path: absolute and free of links: inside as outside.
        access: what can be done there.
    """

    path: Path
    access: Access


@attrs.frozen(kw_only=True)
class MountPlan:
    """All that a contained program sees, beside ``/proc`` with its own processes and a small ``/dev``.

    Attributes:
        places: the shallow ones first; none is shown by the one above it already.
        links: likewise, as far as no place shows them.
        directory: where it starts; at or below one of the places.
        network: whether it is on the host's network; else it is on none.
    """

    places: tuple[MountPoint, ...]
    links: tuple[Link, ...]
    directory: Path
    network: bool

    @property
    def covered(self) -> tuple[Path, ...]:
        """The places that exist only to hide what would be visible without them."""
        return tuple(place.path for place in self.places if place.access.is_hidden)

    def access(self, path: Path) -> Access | None:
        """Return what can be done at ``path``, which is absolute and free of links; None: it is not there."""
        return _access(path, {place.path: place.access for place in self.places})


def plan_mounts(
    places: Iterable[MountPoint], links: Iterable[Link], *, directory: Path, network: bool
) -> MountPlan:
    """Put a view together; of several places at one path, the last counts.

    Args:
        places: in any order, redundant or not.
        links: likewise.
        directory: where the program starts.
        network: whether it is on the host's network.
    """
    wanted = {place.path: place for place in places}
    kept: dict[Path, Access] = {}
    for place in sorted(wanted.values(), key=_depth):
        above = _access(place.path, kept)
        unseen = above is None or above.is_hidden
        if place.access is not above and not (unseen and place.access.is_hidden):
            kept[place.path] = place.access
    needed = {link.path: link for link in links if not _is_shown(link.path.parent, kept)}
    return MountPlan(
        places=tuple(MountPoint(path, access) for path, access in kept.items()),
        links=tuple(sorted(needed.values(), key=_depth)),
        directory=directory,
        network=network,
    )


def _access(path: Path, places: dict[Path, Access]) -> Access | None:
    return next((places[above] for above in (path, *path.parents) if above in places), None)


def _is_shown(path: Path, places: dict[Path, Access]) -> bool:
    access = _access(path, places)
    return access is not None and not access.is_hidden


def _depth(item: MountPoint | Link) -> tuple[int, str]:
    return len(item.path.parts), str(item.path)
