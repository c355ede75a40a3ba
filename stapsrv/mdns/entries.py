"""The advertisements as wanted and as announced, and the next step from the one to the other. Pure.

Each advertisement has an entry for as long as it is wanted or announced. :meth:`Entry.next_step` has all the
logic: the session that performs a step then asks for the next one, so a change during a step is never lost.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from stapsrv.mdns.records import Advertisement, Service, instance_name

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger as Log

# RFC 6762, 8.1: after fifteen conflicts in ten seconds, five seconds before each further probe.
_MANY_CONFLICTS = 15
_WITHIN_S = 10.0
_DELAY_S = 5.0
# Without a conflict for so long, the delay ends.
_CALM_S = 60.0


class Step(enum.Enum):
    """The next step for an entry."""

    # Claim a name and announce the service.
    ANNOUNCE = enum.auto()
    # Another host claims the name: find out who keeps it.
    VERIFY = enum.auto()
    # Announce the changed service.
    UPDATE = enum.auto()
    # Say goodbye.
    WITHDRAW = enum.auto()
    # Neither wanted nor announced.
    REMOVE = enum.auto()


@attrs.frozen
class HostState:
    """The host's name as services refer to it; a higher generation has every service announced again."""

    label: str
    generation: int


@attrs.define(eq=False)
class Entry:
    """One advertisement of one server, whose log it has."""

    server_id: int
    log: Log
    wanted: Advertisement | None
    # The service's, from the first attempt to announce it on.
    name: str | None = None
    # The last announcement, also while it is being made; None if there is nothing to withdraw.
    announced: Service | None = None
    # Another host claims the name.
    contested: bool = False
    # A step is under way.
    busy: bool = False

    def service(self, name: str, host: HostState) -> Service | None:
        """Return the service to announce by this name; None if none is wanted."""
        if self.wanted is None:
            return None
        return Service(name=name, host=host.label, generation=host.generation, advertisement=self.wanted)

    def next_step(self, host: HostState) -> Step | None:
        """Return the next step; None if all is as wanted."""
        if self.wanted is None:
            return Step.REMOVE if self.announced is None else Step.WITHDRAW
        if self.announced is None:
            return Step.ANNOUNCE
        if self.contested:
            return Step.VERIFY
        return None if self.announced == self.service(self.announced.name, host) else Step.UPDATE


class EntryRegistry:
    """The entries of all servers, and their names, which contain ``host``."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._entries: dict[tuple[int, str], Entry] = {}
        self._taken_names: set[str] = set()

    def set(self, server_id: int, advertisements: Sequence[Advertisement], log: Log) -> None:
        """Want these advertisements of a server, and no others."""
        wanted = {(server_id, each.sysinfo): each for each in advertisements}
        for key, entry in self._entries.items():
            if entry.server_id == server_id:
                entry.wanted, entry.log = wanted.pop(key, None), log
        for key, advertisement in wanted.items():
            self._entries[key] = Entry(server_id, log, advertisement)

    def withdraw(self, server_id: int) -> None:
        """Want no advertisement of a server."""
        for entry in self:
            if entry.server_id == server_id:
                entry.wanted = None

    def __iter__(self) -> Iterator[Entry]:
        # A copy: entries come and go while a caller awaits.
        return iter(tuple(self._entries.values()))

    def is_announced(self, server_id: int) -> bool:
        """Whether anything of a server is announced."""
        return any(entry.announced is not None for entry in self if entry.server_id == server_id)

    @property
    def has_wanted(self) -> bool:
        """Whether anything is to be announced."""
        return any(entry.wanted is not None for entry in self)

    def assign_name(self, entry: Entry) -> str:
        """Return the name of ``entry``; a new one is the first that is neither ours nor known as taken."""
        if entry.name is None:
            ours = {other.name for other in self}
            number = 1
            while (name := instance_name(self._host, number)) in ours or name in self._taken_names:
                number += 1
            entry.name = name
        return entry.name

    def rename(self, entry: Entry) -> str:
        """Note that another host has the name of ``entry``, and return its new one."""
        self._taken_names.add(self.assign_name(entry))
        entry.name, entry.announced, entry.contested = None, None, False
        return self.assign_name(entry)

    def mark_contested(self, names: Iterable[str]) -> None:
        """Note that other hosts claim these names."""
        contested = frozenset(names)
        for entry in self:
            entry.contested = entry.contested or entry.name in contested

    def remove(self, entry: Entry) -> None:
        """Remove an entry that is neither wanted nor announced."""
        self._entries = {key: other for key, other in self._entries.items() if other is not entry}

    def reset(self) -> None:
        """Note that the responder is gone: nothing is announced, and no name is known to be taken."""
        self._taken_names.clear()
        for entry in self:
            entry.name, entry.announced, entry.contested, entry.busy = None, None, False, False
            if entry.wanted is None:
                self.remove(entry)


# Without it a host that claims every name would keep this one probing, and logging, without end.
class ConflictBackoff:
    """The delay before a name is probed for, where one name after the other turns out to be taken."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=_MANY_CONFLICTS)
        self._active = False

    def add_conflict(self) -> None:
        """Count one more name that is taken."""
        now = self._clock()
        # Without this, the delay would end itself: with it, at most two conflicts fit into ten seconds.
        self._active = self.delay_s > 0
        self._times.append(now)
        self._active |= len(self._times) == _MANY_CONFLICTS and now - self._times[0] <= _WITHIN_S

    @property
    def delay_s(self) -> float:
        """The wait before the next probe."""
        return _DELAY_S if self._active and self._clock() - self._times[-1] < _CALM_S else 0.0
