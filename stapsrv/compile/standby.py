"""Contained processes that stand by for the next compile, so that it starts at once.

A dozen programs, one after the other, bound and contain a compile before stap begins: more than ten
milliseconds that can have passed before a request comes. Whoever compiles is likely to compile again, so
where fewer compiles go on than there are processors, a process like that of the last one is prepared, in a
directory of its own, and waits for its command. It is taken only where it is, to the last mount, what would
be started otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from pathlib import Path

import anyio
import attrs

from stapsrv.compile.tree import Tree
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import StapsrvError
from stapsrv.sandbox.view import View
from stapsrv.sandbox.waiting import READY

QUIET_S = 0.05
"""Until compiles that came together have all begun, and not between those that wait for a worker."""
_MOUNTS = Path("/proc/self/mountinfo")


@attrs.frozen
class Kind:
    """Jobs that one process suits: those of a server, for a release."""

    release: ServedRelease
    settings: ServerSettings


@attrs.frozen(eq=False, kw_only=True)
class Standby:
    """A process that waits for a command.

    Attributes:
        directory: its own, where the command's job is to be laid out.
        command: what it was started with, waiter and all.
        footing: what it stands on, see :func:`footing`.
        tree: the process.
    """

    directory: Path
    command: list[str | bytes]
    footing: Hashable
    tree: Tree


def footing(view: View) -> Hashable:
    """Return what a process with this view sees, beyond names: mounts, files and directories as they are now.

    Whatever was replaced by another of the same name is another one here; the process still has the former.

    Raises:
        OSError: something of it is gone.
    """
    seen = (place.path.stat() for place in view.places)
    return _MOUNTS.read_bytes(), tuple((status.st_dev, status.st_ino) for status in seen)


class Standbys:
    """At most ``most`` processes that wait, each for the kind of job that came last.

    Args:
        most: 0 for none at all.
        prepare: starts one for jobs of a kind.
        discard: removes the directory of one that has ended, if it is there.
        processors: how many compiles leave no time to prepare one.
        quiet_s: seconds in which no compile begins or ends before one is prepared.
    """

    def __init__(
        self,
        most: int,
        *,
        prepare: Callable[[Kind], Awaitable[Standby | None]],
        discard: Callable[[Path], Awaitable[None]],
        processors: int = 1,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._most = most
        self._prepare = prepare
        self._discard = discard
        self._processors = processors
        self._quiet_s = quiet_s
        self._waiting: dict[Kind, Standby] = {}
        self._leaving: list[Standby] = []
        self._at_work = 0
        self._wanted: Kind | None = None
        self._coming: Kind | None = None
        self._changed = anyio.Event()

    @contextlib.asynccontextmanager
    async def at_work(self, kind: Kind, *, takes: bool = True) -> AsyncIterator[Standby | None]:
        """Give the process that waits for a job of this kind, if there is one, and have the next one wait.

        The one that is given ends with the block.

        Args:
            kind: the job's.
            takes: whether the job may have it.

        Cancellation: it ends.
        """
        self._wanted = kind
        self._change(at_work=1)
        standby = self._take(kind) if takes else None
        try:
            yield standby
        finally:
            if standby is not None:
                await self._put_away(standby)
            self._wanted = kind
            self._change(at_work=-1)

    def retire(self, settings: ServerSettings) -> None:
        """Have none wait for jobs with these settings: no more of them come."""
        for kind in [kind for kind in self._waiting if kind.settings == settings]:
            self._leaving.append(self._waiting.pop(kind))
        if self._wanted is not None and self._wanted.settings == settings:
            self._wanted = None
        if self._coming is not None and self._coming.settings == settings:
            self._coming = None
        self._change(at_work=0)

    async def run(self) -> None:
        """Prepare processes when there is time, until cancelled; then end them.

        Their directories are left to whoever removes the whole workspace.
        """
        try:
            while self._most:
                changed = self._changed
                while self._leaving:
                    await self._put_away(self._leaving.pop())
                if self._at_work >= self._processors or self._wanted is None:
                    await changed.wait()
                    continue
                with anyio.move_on_after(self._quiet_s):
                    await changed.wait()
                    continue
                kind, self._wanted = self._wanted, None
                await self._have(kind)
        finally:
            with anyio.CancelScope(shield=True):
                for standby in (*self._waiting.values(), *self._leaving):
                    await standby.tree.end(0.0)

    async def _have(self, kind: Kind) -> None:
        """Have one wait for jobs of a kind."""
        standby = self._waiting.get(kind)
        if standby is not None:
            if not standby.tree.has_ended:
                return
            await self._put_away(self._waiting.pop(kind))
        # What is in its way is in the way of the next compile, too, whose client is told of it.
        with contextlib.suppress(OSError, StapsrvError):
            self._coming = kind
            standby = await self._prepare(kind)
            if standby is None:
                return
            if self._coming is None:
                self._leaving.append(standby)
                return
            self._waiting[kind] = standby
            while len(self._waiting) > self._most:
                self._leaving.append(self._waiting.pop(next(iter(self._waiting))))

    async def _put_away(self, standby: Standby) -> None:
        """End one, and remove its directory, if that has not been done."""
        with anyio.CancelScope(shield=True):
            await standby.tree.end(0.0)
            await self._discard(standby.directory)

    def _take(self, kind: Kind) -> Standby | None:
        """Return the process for a kind of job, if it waits by now."""
        standby = self._waiting.get(kind)
        if standby is None or standby.tree.has_ended or not standby.tree.has_said(READY):
            return None
        return self._waiting.pop(kind)

    @property
    def waiting(self) -> tuple[Standby, ...]:
        """Those that wait, or will, the oldest first."""
        return tuple(self._waiting.values())

    @property
    def pids(self) -> frozenset[int]:
        """The process ids of those that wait, or will."""
        return frozenset(standby.tree.pid for standby in self._waiting.values())

    def _change(self, *, at_work: int) -> None:
        self._at_work += at_work
        self._changed.set()
        self._changed = anyio.Event()
