"""How long to wait before a name is asked for, where one after the other turns out to be taken. Pure.

Somebody who claims whatever name is asked for would otherwise keep this host asking, and logging, without
end.

Source: RFC 6762, 8.1.

What is to be advertised, what is, and what is to be done about the difference. Pure.

Each advertisement has an entry for as long as it is wanted or announced. :meth:`Entry.next_step` is all
the theory: whoever performs the steps (:mod:`stapsrv.mdns.advertiser`) asks for the next one when one is
done, so changes that come while one is under way are never lost.
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

_MANY = 15
_WITHIN_S = 10.0
_PAUSE_S = 5.0
_CALM_S = 60.0
"""Without a further conflict, after which all is as it was."""


class ConflictBackoff:
    """Counts the names that turned out to be taken.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=_MANY)
        self._strained = False

    def note(self) -> None:
        """Count one more."""
        now = self._clock()
        self._strained = self.pause_s > 0
        self._times.append(now)
        self._strained |= len(self._times) == _MANY and now - self._times[0] <= _WITHIN_S

    @property
    def pause_s(self) -> float:
        """How long to wait before the next name is asked for."""
        return _PAUSE_S if self._strained and self._clock() - self._times[-1] < _CALM_S else 0.0


class Step(enum.Enum):
    """What is to be done about an entry next."""

    ANNOUNCE = enum.auto()
    """Claim a name and announce it."""
    VERIFY = enum.auto()
    """Another host claims its name: see who keeps it."""
    UPDATE = enum.auto()
    """Say what it is now."""
    WITHDRAW = enum.auto()
    """Say goodbye."""
    FORGET = enum.auto()
    """It is neither wanted nor announced."""


@attrs.frozen
class Surroundings:
    """What all services share.

    Attributes:
        host: the host's own name on the network, one label.
        age: grows with each change that makes it necessary to say everything again.
    """

    host: str
    age: int


@attrs.define(eq=False)
class Entry:
    """One advertisement of one server.

    Attributes:
        server_id: the server's.
        log: the server's own.
        wanted: what is to be announced, or None.
        name: its service's name, from the first attempt to announce it on.
        said: what was announced last, or is about to be; None when there is nothing to say goodbye to.
        said_at: the age of the surroundings then.
        contested: another host claims its name.
        busy: a step is under way.
    """

    server_id: int
    log: Log
    wanted: Advertisement | None
    name: str | None = None
    said: Service | None = None
    said_at: int = 0
    contested: bool = False
    busy: bool = False

    def service(self, name: str, surroundings: Surroundings) -> Service | None:
        """Return what is to be said of it, by this name; None when it is not wanted."""
        if self.wanted is None:
            return None
        return Service(
            name=name,
            host=surroundings.host,
            port=self.wanted.port,
            text=self.wanted.text,
            addresses=self.wanted.addresses,
        )

    def next_step(self, surroundings: Surroundings) -> Step | None:
        """Return what is to be done now; None when all is as wanted."""
        if self.wanted is None:
            return Step.FORGET if self.said is None else Step.WITHDRAW
        if self.said is None:
            return Step.ANNOUNCE
        if self.contested:
            return Step.VERIFY
        current = self.said_at == surroundings.age and self.said == self.service(self.said.name, surroundings)
        return None if current else Step.UPDATE


class EntryRegistry:
    """The entries of all servers, and the names that they have.

    Args:
        host: the host's name, as services are called after it.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._entries: dict[tuple[int, str], Entry] = {}
        self._taken: set[str] = set()

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
        """Return all entries."""
        return iter(tuple(self._entries.values()))

    def is_announced(self, server_id: int) -> bool:
        """Whether anything of a server was said and not taken back."""
        return any(entry.said is not None for entry in self if entry.server_id == server_id)

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to say."""
        return any(entry.wanted is not None for entry in self)

    def name(self, entry: Entry) -> str:
        """Return the name of ``entry``: a new one is the first that is not ours, or known to be others'."""
        if entry.name is None:
            ours = {other.name for other in self}
            number = 1
            while (name := instance_name(self._host, number)) in ours or name in self._taken:
                number += 1
            entry.name = name
        return entry.name

    def rename(self, entry: Entry) -> str:
        """Take it that another host has the name of ``entry``, and return a new one."""
        self._taken.add(self.name(entry))
        entry.name, entry.said, entry.contested = None, None, False
        return self.name(entry)

    def contest(self, names: Iterable[str]) -> None:
        """Note that other hosts claim these names."""
        contested = frozenset(names)
        for entry in self:
            entry.contested = entry.contested or entry.name in contested

    def forget(self, entry: Entry) -> None:
        """Remove an entry that is neither wanted nor announced."""
        self._entries = {key: other for key, other in self._entries.items() if other is not entry}

    def lose_all(self) -> None:
        """Take it that nothing is announced any more, and that nobody is known to have any name."""
        self._taken.clear()
        for entry in self:
            entry.name, entry.said, entry.contested, entry.busy = None, None, False, False
            if entry.wanted is None:
                self.forget(entry)
