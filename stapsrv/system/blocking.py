"""Blocking work on files in threads, for file systems that may not answer: every call ends in time.

A call into a dead network file system cannot be interrupted, only abandoned. The threads of anyio are of
no use for that: on asyncio the end of the process waits for them, on Trio an abandoned one keeps its place
in the limiter of everybody's threads. So there is a thread for each call here, which the end of the
process does not wait for, and a bound on how many are abandoned: where that is met, calls fail at once.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

_T = TypeVar("_T")

TIMEOUT_S = 30.0
"""A disk that is written back at full speed answers after seconds."""
GRACE_S = 2.0
"""What a call that nobody waits for any more gets to end by itself, so that what it made can be undone."""
_THREADS = 32
_MOST_ABANDONED = 16


class BlockingCalls:
    """The calls to one place, such as a temporary directory: others do not notice when it hangs.

    Args:
        timeout_s: seconds that a call may take.
        grace_s: seconds that it gets after the caller's cancellation.
        threads: calls at the same time; more wait for their turn, which counts as theirs.
        most_abandoned: threads that may hang before calls are refused without a try.
    """

    def __init__(
        self,
        *,
        timeout_s: float = TIMEOUT_S,
        grace_s: float = GRACE_S,
        threads: int = _THREADS,
        most_abandoned: int = _MOST_ABANDONED,
    ) -> None:
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._limiter = anyio.CapacityLimiter(threads)
        self._most_abandoned = most_abandoned
        self._abandoned = 0
        self._counting = threading.Lock()

    @property
    def abandoned(self) -> int:
        """How many threads hang in calls that nobody waits for any more."""
        return self._abandoned

    async def run(
        self,
        call: Callable[[], _T],
        *,
        timeout_s: float | None = None,
        cleanup: Callable[[_T], object] | None = None,
    ) -> _T:
        """Return what ``call`` returns, called in a thread.

        Args:
            call: works on files, and may hang.
            timeout_s: seconds, in place of those of this object.
            cleanup: given what ``call`` returned when nobody could take that any more; called in a thread.

        Raises:
            TimeoutError: an OSError of errno ETIMEDOUT: it did not end in time. Should it end after all, what
                it did stays done, unless ``cleanup`` undoes it.
            BaseException: whatever it raises.

        Cancellation: the call gets ``grace_s`` to end; what it returns is undone then, or whenever it ends.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if self._abandoned >= self._most_abandoned:
            raise TimeoutError(errno.ETIMEDOUT, f"{self._abandoned} calls hang already")
        with anyio.move_on_after(timeout_s):
            async with self._limiter:
                return await self._run(call, cleanup)
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {timeout_s:g} seconds")

    async def _run(self, call: Callable[[], _T], cleanup: Callable[[_T], object] | None) -> _T:
        work = _Work(call)
        try:
            threading.Thread(target=work.run, name="file work", daemon=True).start()
        except RuntimeError as exc:
            raise OSError(errno.EAGAIN, "no thread can be started") from exc
        try:
            await work.ended.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._give_up(work, cleanup)
            raise
        return work.result()

    async def _give_up(self, work: _Work[_T], cleanup: Callable[[_T], object] | None) -> None:
        """Give a call a moment, then abandon it; what it returns, now or one day, is undone."""
        with anyio.move_on_after(self._grace_s):
            await work.ended.wait()

        def clean_up() -> None:
            if cleanup is not None and work.has_returned:
                cleanup(work.result())

        def clean_up_late() -> None:
            with contextlib.suppress(OSError):
                clean_up()
            self._count(-1)

        self._count(1)
        if not work.abandon(clean_up_late):
            self._count(-1)
            with anyio.move_on_after(self._grace_s), contextlib.suppress(OSError):
                await self._run(clean_up, None)

    def _count(self, change: int) -> None:
        with self._counting:
            self._abandoned += change


class _Work(Generic[_T]):
    """One call in a thread of its own.

    Attributes:
        ended: set when the call has ended, unless it was abandoned.
    """

    def __init__(self, call: Callable[[], _T]) -> None:
        self.ended = anyio.Event()
        self._call = call
        self._token = anyio.lowlevel.current_token()
        self._deciding = threading.Lock()
        self._has_ended = False
        self._afterwards: Callable[[], object] | None = None
        self._returned: _T
        self._raised: BaseException | None = None

    @property
    def has_returned(self) -> bool:
        """Whether the call has ended well."""
        return self._has_ended and self._raised is None

    def run(self) -> None:
        """Call, in the thread; then tell whoever waits, or do what is left to do for nobody."""
        try:
            self._returned = self._call()
        except BaseException as exc:  # noqa: BLE001 - raised again by result()
            self._raised = exc
        with self._deciding:
            self._has_ended = True
            afterwards = self._afterwards
        if afterwards is not None:
            afterwards()
            return
        with contextlib.suppress(anyio.RunFinishedError):
            anyio.from_thread.run_sync(self.ended.set, token=self._token)

    def abandon(self, afterwards: Callable[[], object]) -> bool:
        """Have ``afterwards`` called in the thread when the call has ended; False if it has already."""
        with self._deciding:
            if not self._has_ended:
                self._afterwards = afterwards
            return not self._has_ended

    def result(self) -> _T:
        """Return what the call returned, or raise what it raised."""
        if self._raised is not None:
            raise self._raised
        return self._returned
