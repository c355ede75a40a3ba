"""Blocking calls on files in threads, with a deadline, for file systems that may hang.

A call into a dead network file system cannot be interrupted, only abandoned.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import attrs

_T = TypeVar("_T")


@attrs.define(kw_only=True, eq=False)
class BlockingCalls:
    """Runs calls to one place, such as a temporary directory, so that others do not notice when it hangs.

    At most ``max_threads`` run at a time; the others wait, and their deadline runs. When ``max_abandoned``
    hang, further calls fail at once. The end of the process does not wait for calls that hang.
    """

    # Not anyio's threads: on asyncio the end of the process waits for them, and on Trio an abandoned one
    # keeps its place in the limiter that everybody shares.

    # A disk that is written at full speed takes seconds to answer.
    timeout_s: float = 30.0
    # For a call to end by itself after its caller was cancelled, so that its result can be cleaned up.
    grace_s: float = 2.0
    max_threads: int = 32
    max_abandoned: int = 16
    _abandoned: list[threading.Thread] = attrs.field(factory=list, init=False)
    _limiter: anyio.CapacityLimiter = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(self.max_threads)

    @property
    def abandoned(self) -> int:
        """The number of threads in calls that nobody waits for any more."""
        return sum(thread.is_alive() for thread in self._abandoned)

    async def run(
        self,
        call: Callable[[], _T],
        *,
        timeout_s: float | None = None,
        cleanup: Callable[[_T], object] | None = None,
    ) -> _T:
        """Return what ``call`` returns, called in a thread.

        ``timeout_s`` goes before the object's own. ``cleanup`` gets the value, in a thread, when there is
        nobody left to return it to; its OSError is ignored.

        Raises:
            TimeoutError: an OSError with errno ETIMEDOUT: it did not end in time, or too many hang already.
                It may still end later; what it did then stays done, unless ``cleanup`` undoes it.
            OSError: no thread can be started (EAGAIN).
            BaseException: whatever it raises.

        Cancellation: the call gets ``grace_s`` to end; its value is cleaned up then, or whenever it ends.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        if (abandoned := self.abandoned) >= self.max_abandoned:
            raise TimeoutError(errno.ETIMEDOUT, f"{abandoned} calls hang already")
        with anyio.move_on_after(timeout_s):
            async with self._limiter:
                return await self._run(call, cleanup)
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {timeout_s:g} seconds")

    async def _run(self, call: Callable[[], _T], cleanup: Callable[[_T], object] | None) -> _T:
        outcome: Future[_T] = Future()
        ended = anyio.Event()
        token = anyio.lowlevel.current_token()
        # Decides between an end and an abandonment at the same moment: the holder was first.
        first = threading.Lock()

        def clean_up() -> None:
            if cleanup is not None and outcome.exception() is None:
                with contextlib.suppress(OSError):
                    cleanup(outcome.result())

        def run() -> None:
            try:
                outcome.set_result(call())
            except BaseException as exc:  # noqa: BLE001 - raised again by result()
                outcome.set_exception(exc)
            if first.acquire(blocking=False):
                with contextlib.suppress(anyio.RunFinishedError):
                    anyio.from_thread.run_sync(ended.set, token=token)
            else:
                clean_up()

        thread = threading.Thread(target=run, name="blocking call", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:
            raise OSError(errno.EAGAIN, "no thread can be started") from exc
        try:
            await ended.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(self.grace_s):
                    await ended.wait()
                if first.acquire(blocking=False):
                    self._abandoned = [*filter(threading.Thread.is_alive, self._abandoned), thread]
                else:
                    with anyio.move_on_after(self.grace_s):
                        await self._run(clean_up, None)
            raise
        return outcome.result()
