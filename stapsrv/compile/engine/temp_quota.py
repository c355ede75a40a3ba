"""Bounds the temporary space of compiles: it is measured while they run, so that none fills the disk.

Twice a second a thread walks over a compile's directory, a few hundred files as a rule. What is written
between two walks is not seen in time; ``LIMIT_FILE`` bounds a single file at once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio

from stapsrv.compile.protocol.archive import MAX_COMPONENTS
from stapsrv.errors import TranslatorError
from stapsrv.rejection import RejectReason
from stapsrv.system import trees
from stapsrv.system.blocking import BlockingCalls

_INTERVAL_S = 0.5
# The unit of st_blocks (stat(3type)).
_BLOCK_BYTES = 512
# Of anything that has a name: an empty file costs an inode, and a walk costs time for each.
_LEAST_BYTES = 16 << 10
# A request's own directories, and some around them.
_MAX_DEPTH = MAX_COMPONENTS + 10
# No honest compile makes a directory that its own user cannot read, or nests them so deep, or moves them.
_EVADED = frozenset({errno.EACCES, errno.ELOOP, errno.ESTALE})

_T = TypeVar("_T")


class TempQuota:
    """The bound on the temporary space of all compiles together; above it the one that uses most is ended."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._used: dict[Path, int] = {}

    @property
    def used_bytes(self) -> int:
        """The space that all use, as it was last measured."""
        return sum(self._used.values())

    async def enforce(
        self, directory: Path, run: Callable[[], Awaitable[_T]], *, most_bytes: int, files: BlockingCalls
    ) -> _T:
        """Return the result of ``run``; cancel it and raise TranslatorError when too much space is used."""
        finished: list[_T] = []
        problems: list[Exception] = []

        async def watch(scope: anyio.CancelScope) -> None:
            problems.append(await self._wait_exceeded(directory, most_bytes, files))
            scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch, tasks.cancel_scope)
                try:
                    finished.append(await run())
                except Exception as exc:  # noqa: BLE001 - raised below, without a group around it
                    problems = [exc]
                tasks.cancel_scope.cancel()
        finally:
            self._used.pop(directory, None)
        if finished:
            return finished[0]
        raise problems[0]

    async def _wait_exceeded(self, directory: Path, most_bytes: int, files: BlockingCalls) -> TranslatorError:
        """Measure until too much is used, and return the error for that."""
        measure = functools.partial(measure_bytes, directory, enough=most_bytes)
        while True:
            await anyio.sleep(_INTERVAL_S)
            try:
                used = await files.run(measure)
            except OSError:
                # A file system that hangs fills nothing, and without a descriptor a compile gets no further
                # either; it has a deadline.
                continue
            self._used[directory] = used
            if used > most_bytes:
                problem = f"The compile was ended: it used more than {most_bytes} bytes of temporary space"
                return TranslatorError(problem, reject_reason=RejectReason.TEMP_SIZE)
            if self.used_bytes > self._most_bytes and used == max(self._used.values()):
                return TranslatorError(
                    "The compile was ended: the server has no more temporary space for it",
                    remedy="try again later",
                    reject_reason=RejectReason.TOTAL_TEMP_SIZE,
                )


def measure_bytes(directory: Path, *, enough: int) -> int:
    """Return the space that a directory uses on disk; stops counting above ``enough``. May raise OSError."""
    total = 0
    try:
        with (
            trees.open_directory(directory) as top,
            contextlib.closing(trees.walk(top, max_depth=_MAX_DEPTH)) as entries,
        ):
            for entry in entries:
                total += max(entry.status.st_blocks * _BLOCK_BYTES, _LEAST_BYTES)
                if total > enough:
                    break
    except FileNotFoundError:
        return total
    except OSError as exc:
        if exc.errno in _EVADED:
            return enough + 1
        raise
    return total
