"""How much temporary space compiles use: measured while they run, so that none fills the disk of all.

Twice a second a thread walks over a compile's directory, a few hundred files as a rule. What is written
between two walks is not seen in time; ``LIMIT_FILE`` bounds a single file at once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio

from stapsrv.errors import TranslatorError
from stapsrv.rejection import RejectReason
from stapsrv.system.blocking import BlockingCalls

_INTERVAL_S = 0.5
# The unit of st_blocks (stat(3type)).
_BLOCK_BYTES = 512
# Of anything that has a name: an empty file costs an inode, and a walk costs time for each.
_LEAST_BYTES = 4096

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
            except TimeoutError:
                # A file system that hangs fills nothing, and the compile that waits for it has a deadline.
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
    """Return the space that a directory uses on disk; stops counting above ``enough``."""
    total = 0
    waiting: list[str] = [str(directory)]
    while waiting and total <= enough:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                        is_directory = entry.is_dir(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    total += max(status.st_blocks * _BLOCK_BYTES, _LEAST_BYTES)
                    if is_directory:
                        waiting.append(entry.path)
                    if total > enough:
                        break
        except PermissionError:
            # No honest compile makes a directory that its own user cannot read.
            return enough + 1
        except OSError:
            # Gone meanwhile, or too deep to have a name.
            continue
    return total
