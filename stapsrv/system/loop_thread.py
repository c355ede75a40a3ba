"""An asyncio event loop in a thread of its own, for a library that knows no other, and calls into it.

The caller's loop may be Trio's. What the thread has for it comes by a queue and an eventfd(2), which a task
of the caller's loop waits for; nothing is asked again and again, and neither loop ever blocks on the other.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

import anyio
import anyio.from_thread
import attrs

from stapsrv.system.readiness import wait_readable

_T = TypeVar("_T")

# How long a cancelled call may take to clean up, and the thread to end.
_END_S = 10.0


@attrs.define(eq=False)
class _Call(Generic[_T]):
    """One call into the thread; the fields are the thread's until ``done`` is set in the caller's loop."""

    function: Callable[[], Awaitable[_T]]
    done: anyio.Event = attrs.field(factory=anyio.Event)
    scope: anyio.CancelScope | None = None
    is_cancelled: bool = False
    result: list[_T] = attrs.field(factory=list)
    failure: BaseException | None = None


class LoopThread:
    """Runs coroutines in its thread, within :meth:`open`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._portal: anyio.from_thread.BlockingPortal | None = None
        self._posted: deque[Callable[[], object]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, name: str) -> AsyncIterator[LoopThread]:
        """Start the thread; at the end all calls are cancelled, and it is waited for within bounds."""
        self = cls(name)
        started, ended = anyio.Event(), anyio.Event()
        # It dies with the process where it hangs.
        thread = threading.Thread(target=self._run, args=(started, ended), name=name, daemon=True)
        async with anyio.create_task_group() as tasks:
            delivering = anyio.CancelScope(shield=True)
            tasks.start_soon(self._deliver, delivering)
            thread.start()
            try:
                await started.wait()
                yield self
            finally:
                with anyio.move_on_after(_END_S, shield=True):
                    await started.wait()
                    if self._portal is not None:
                        self._portal.start_task_soon(self._portal.stop, True)  # noqa: FBT003 - cancel all
                    await ended.wait()
                delivering.cancel()
        if ended.is_set():
            # Else the thread may still write to it.
            os.close(self._wake)

    async def call(self, function: Callable[[], Awaitable[_T]]) -> _T:
        """Run a coroutine function in the thread, and return what it does, or raise what it raises.

        Cancellation: it is cancelled there, and its clean-up waited for within bounds.
        """
        call = _Call(function)
        portal = self._portal
        if portal is None:
            raise RuntimeError(f"the thread {self._name} has ended")
        portal.start_task_soon(self._perform, call)
        try:
            await call.done.wait()
        except BaseException:
            portal.start_task_soon(_cancel, call)
            with anyio.move_on_after(_END_S, shield=True):
                await call.done.wait()
            raise
        if call.failure is not None:
            raise call.failure
        return call.result[0]

    def post(self, function: Callable[[], object]) -> None:
        """Have a function called in the loop of :meth:`open`; for the thread."""
        self._posted.append(function)
        os.eventfd_write(self._wake, 1)

    async def _deliver(self, scope: anyio.CancelScope) -> None:
        # To the very end: those who are cancelled wait for what the thread says of that.
        with scope:
            while True:
                await wait_readable(self._wake)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                while self._posted:
                    self._posted.popleft()()

    def _run(self, started: anyio.Event, ended: anyio.Event) -> None:
        async def serve() -> None:
            async with anyio.from_thread.BlockingPortal() as self._portal:
                self.post(started.set)
                await self._portal.sleep_until_stopped()

        try:
            anyio.run(serve, backend="asyncio")
        finally:
            self._portal = None
            self.post(started.set)
            self.post(ended.set)

    async def _perform(self, call: _Call[_T]) -> None:
        try:
            with anyio.CancelScope() as call.scope:
                if call.is_cancelled:
                    call.scope.cancel()
                call.result.append(await call.function())
            if not call.result:
                call.failure = RuntimeError(f"the call to the thread {self._name} was cancelled")
        except Exception as exc:  # noqa: BLE001 - it is the caller's
            call.failure = exc
        except BaseException:
            # The thread ends.
            call.failure = RuntimeError(f"the thread {self._name} has ended")
            raise
        finally:
            self.post(call.done.set)


async def _cancel(call: _Call[_T]) -> None:
    call.is_cancelled = True
    if call.scope is not None:
        call.scope.cancel()
