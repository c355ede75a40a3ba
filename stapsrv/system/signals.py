"""Signals, received in the event loop.

Not by the loops' own means: when those end, the default action holds for a moment, and a signal that comes
then kills the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Iterator
from types import FrameType

import anyio

_AT_ONCE = 64


@contextlib.contextmanager
def signals_received(*numbers: signal.Signals) -> Iterator[AsyncGenerator[signal.Signals, None]]:
    """Receive signals while the block runs, and ignore them from then on: the process is about to end.

    One that comes again before it was received is received once, as signal(7) has it for the kernel's own.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    pending: set[int] = set()

    def note(number: int, _frame: FrameType | None) -> None:
        if number not in pending:
            pending.add(number)
            os.write(writer, bytes([number]))

    async def receive() -> AsyncGenerator[signal.Signals, None]:
        while True:
            await anyio.wait_readable(reader)
            for number in os.read(reader, _AT_ONCE):
                pending.discard(number)
                yield signal.Signals(number)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield receive()
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        os.close(reader)
        os.close(writer)
