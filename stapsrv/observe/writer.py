"""A thread that writes one log, so that nobody else waits for its file system."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from stapsrv.observe.formats import Encode, LogEntry
from stapsrv.observe.sinks import Sink

# Seconds of a busy server's lines: a disk that is only slow costs none.
MAX_ENTRIES = 4096


class LogWriter:
    """Writes entries to one sink, in order, in a thread; at most :data:`MAX_ENTRIES` of them wait.

    A sink that hangs or cannot take entries costs these entries and nothing else. They are counted in
    ``dropped``, and the sink gets the count as soon as it takes entries again.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.dropped = 0
        # Since the last entry that was put.
        self._refused = 0
        # Not told to the sink yet; the thread's own.
        self._lost = 0
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # Never held while the sink is written to.
        self._lock = threading.RLock()

    def write(self, entry: LogEntry, encode: Encode) -> None:
        """Have an entry written soon; never raises, and never waits."""
        data = encode(entry)
        with self._lock:
            missing, self._refused = self._refused, 0
            append = partial(self._append, data, encode, missing)
            if self._calls.qsize() >= MAX_ENTRIES or not self.put(append):
                self._refused = missing + 1
                self.dropped += 1

    def put(self, call: Callable[[], object]) -> bool:
        """Have ``call`` made after what was put so far; return False if no thread can be started."""
        # Two threads would write in any order, and only one of them would be ended.
        with self._lock:
            if self._thread is None:
                # The interpreter's end waits for no daemon thread; a dead file system would hold others up.
                thread = threading.Thread(target=self._run, name="log writer", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._thread = thread
        self._calls.put(call)
        return True

    def flush(self, *, deadline: float) -> None:
        """Wait until what was put so far is written, at most until ``deadline`` (:func:`time.monotonic`)."""
        written = threading.Event()
        if self._thread is not None and self.put(written.set):
            written.wait(max(0.0, deadline - time.monotonic()))

    def close(self, *, deadline: float) -> None:
        """Close the sink after what was put so far, by ``deadline`` if it can; later calls open it again."""
        thread, self._thread = self._thread, None
        if thread is None:
            self.sink.close()
            return
        self._calls.put(self.sink.close)
        self._calls.put(None)
        thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            with contextlib.suppress(OSError):
                call()

    def _append(self, data: bytes, encode: Encode, missing: int) -> None:
        """Write an entry before which ``missing`` others were refused."""
        self._lost += missing
        try:
            if self._lost:
                fields = {"entries": self._lost}
                lost = LogEntry(time=time.time(), level="warning", event="log.lost", fields=fields)
                self.sink.write(encode(lost))
                self._lost = 0
            self.sink.write(data)
        except OSError:
            self._lost += 1
            with self._lock:
                self.dropped += 1
