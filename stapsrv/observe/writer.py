"""A thread that writes one log, so that nobody else waits for its file system."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

from stapsrv.observe.sinks import Sink

# Seconds of a busy server's lines: a disk that is only slow costs none.
MAX_ENTRIES = 4096


class LogWriter:
    """Carries out the writes to one sink, in order, in a thread; at most ``max_entries`` of them wait.

    A sink that hangs costs this log's entries and nothing else.
    """

    def __init__(self, sink: Sink, *, max_entries: int = MAX_ENTRIES) -> None:
        self.sink = sink
        self._max_entries = max_entries
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def offer(self, call: Callable[[], object]) -> bool:
        """Have ``call`` made soon; return False if too many wait already."""
        if self._calls.qsize() >= self._max_entries:
            return False
        return self.insist(call)

    def insist(self, call: Callable[[], object]) -> bool:
        """Have ``call`` made after those before, however many wait; return False if the process is ending."""
        if self._thread is None and not self._start():
            return False
        self._calls.put(call)
        return True

    def flush(self, *, deadline: float) -> None:
        """Wait until what was put so far is written, at most until ``deadline`` (:func:`time.monotonic`)."""
        written = threading.Event()
        if self._thread is not None and self.insist(written.set):
            written.wait(max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        """Have the sink closed after what was put so far; later calls open it again."""
        if self._thread is None:
            self.sink.close()
            return
        self._calls.put(self.sink.close)
        self._calls.put(None)

    def wait_ended(self, *, deadline: float) -> None:
        """Wait for what :meth:`end` began, at most until ``deadline``."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> bool:
        # Two threads would write in any order, and only one of them would be ended.
        with self._starting:
            if self._thread is None:
                # The interpreter's end waits for no daemon thread; a dead file system would hold others up.
                thread = threading.Thread(target=self._run, name="log writer", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._thread = thread
        return True

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            with contextlib.suppress(OSError):
                call()
