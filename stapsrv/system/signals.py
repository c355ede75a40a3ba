"""Signals, received as values in the event loop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Callable, Iterator
from types import FrameType

from stapsrv.system.readiness import wait_readable

_READ_BYTES = 64


@contextlib.contextmanager
def signals_received(
    *numbers: signal.Signals,
) -> Iterator[Callable[[], AsyncGenerator[signal.Signals, None]]]:
    """Receive signals while the block runs, and ignore them afterwards: the process is about to end.

    They come from what the yielded function returns, one receiver at a time; until there is one, they wait.
    A signal that is sent again before it was received is received once, like the kernel's own (signal(7)).
    """
    # Not by the event loops' own means: when these end, the default action holds for a moment, and a signal
    # that comes then kills the process.
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    pending: set[int] = set()

    def enqueue(number: int, _frame: FrameType | None) -> None:
        if number not in pending:
            pending.add(number)
            os.write(writer, bytes([number]))

    async def receive() -> AsyncGenerator[signal.Signals, None]:
        while True:
            await wait_readable(reader)
            for number in os.read(reader, _READ_BYTES):
                pending.discard(number)
                yield signal.Signals(number)

    for number in numbers:
        signal.signal(number, enqueue)
    try:
        yield receive
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        os.close(reader)
        os.close(writer)
