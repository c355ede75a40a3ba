"""Blocking calls on files in threads, with a deadline, for file systems that may hang.

A call into a dead network file system cannot be interrupted, only abandoned.
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
"""A disk that is written at full speed takes seconds to answer."""
GRACE_S = 2.0
"""For a call to end by itself after its caller was cancelled, so that its result can be cleaned up."""
_MAX_THREADS = 32
_MAX_ABANDONED = 16


class BlockingCalls:
    """Runs calls to one place, such as a temporary directory, so that others do not notice when it hangs.

    At most ``max_threads`` run at a time; the others wait, and their deadline runs. When ``max_abandoned``
    hang, further calls fail at once.
    """

    # Not anyio's threads: on asyncio the end of the process waits for them, and on Trio an abandoned one
    # keeps its place in the limiter that everybody shares.

    def __init__(
        self,
        *,
        timeout_s: float = TIMEOUT_S,
        grace_s: float = GRACE_S,
        max_threads: int = _MAX_THREADS,
        max_abandoned: int = _MAX_ABANDONED,
    ) -> None:
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._limiter = anyio.CapacityLimiter(max_threads)
        self._max_abandoned = max_abandoned
        self._abandoned = 0
        self._lock = threading.Lock()

    @property
    def abandoned(self) -> int:
        """The number of threads in calls that nobody waits for any more."""
        return self._abandoned

    async def run(
        self,
        call: Callable[[], _T],
        *,
        timeout_s: float | None = None,
        cleanup: Callable[[_T], object] | None = None,
    ) -> _T:
        """Return what ``call`` returns, called in a thread.

        ``cleanup`` gets that value, in a thread, when there is nobody left to return it to.

        Raises:
            TimeoutError: an OSError with errno ETIMEDOUT: it did not end in time. It may still end later.
            BaseException: whatever it raises.

        Cancellation: the call gets ``grace_s`` to end; its value is cleaned up then, or whenever it ends.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if self._abandoned >= self._max_abandoned:
            raise TimeoutError(errno.ETIMEDOUT, f"{self._abandoned} calls hang already")
        with anyio.move_on_after(timeout_s):
            async with self._limiter:
                return await self._run(call, cleanup)
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {timeout_s:g} seconds")

    async def _run(self, call: Callable[[], _T], cleanup: Callable[[_T], object] | None) -> _T:
        thread = _CallThread(call)
        try:
            threading.Thread(target=thread.run, name="blocking call", daemon=True).start()
        except RuntimeError as exc:
            raise OSError(errno.EAGAIN, "no thread can be started") from exc
        try:
            await thread.ended.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._abandon(thread, cleanup)
            raise
        return thread.result()

    async def _abandon(self, thread: _CallThread[_T], cleanup: Callable[[_T], object] | None) -> None:
        """Give a call its grace, then abandon it; its value is cleaned up, now or whenever it ends."""
        with anyio.move_on_after(self._grace_s):
            await thread.ended.wait()

        def clean_up() -> None:
            if cleanup is not None and thread.has_returned:
                cleanup(thread.result())

        def clean_up_late() -> None:
            with contextlib.suppress(OSError):
                clean_up()
            self._count(-1)

        self._count(1)
        if not thread.abandon(clean_up_late):
            self._count(-1)
            with anyio.move_on_after(self._grace_s), contextlib.suppress(OSError):
                await self._run(clean_up, None)

    def _count(self, change: int) -> None:
        with self._lock:
            self._abandoned += change


class _CallThread(Generic[_T]):
    """One call in a thread of its own; ``ended`` is set at its end, unless it was abandoned."""

    def __init__(self, call: Callable[[], _T]) -> None:
        self.ended = anyio.Event()
        self._call = call
        self._token = anyio.lowlevel.current_token()
        # Decides between an end and an abandonment at the same moment.
        self._lock = threading.Lock()
        self._has_ended = False
        self._afterwards: Callable[[], object] | None = None
        self._returned: _T
        self._raised: BaseException | None = None

    @property
    def has_returned(self) -> bool:
        return self._has_ended and self._raised is None

    def run(self) -> None:
        try:
            self._returned = self._call()
        except BaseException as exc:  # noqa: BLE001 - raised again by result()
            self._raised = exc
        with self._lock:
            self._has_ended = True
            afterwards = self._afterwards
        if afterwards is not None:
            afterwards()
            return
        with contextlib.suppress(anyio.RunFinishedError):
            anyio.from_thread.run_sync(self.ended.set, token=self._token)

    def abandon(self, afterwards: Callable[[], object]) -> bool:
        """Have ``afterwards`` called in the thread when the call has ended; False if it has already."""
        with self._lock:
            if not self._has_ended:
                self._afterwards = afterwards
            return not self._has_ended

    def result(self) -> _T:
        if self._raised is not None:
            raise self._raised
        return self._returned
