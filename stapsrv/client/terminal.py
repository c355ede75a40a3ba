"""Output and questions at a terminal: a request's progress, and whether a server is the right one.

All of it is on standard error; standard output has what stap prints.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from stapsrv.client.errors import UnknownServer
from stapsrv.client.exchange import OnStage, Stage

_TICK_S = 0.5
_CLEAR_LINE = "\r\x1b[K"


@contextlib.contextmanager
def progress(environ: Mapping[str, str]) -> Iterator[OnStage]:
    """Show the stage and the seconds so far on one line that is gone at the end.

    Nothing is shown where standard error is no terminal, or one that cannot go back on a line.
    """
    if not sys.stderr.isatty() or environ.get("TERM", "dumb") == "dumb":
        yield lambda _stage: None
        return
    line = _Line()
    thread = threading.Thread(target=line.run, name="progress", daemon=True)
    thread.start()
    try:
        yield line.show
    finally:
        line.end()
        thread.join(_TICK_S * 4)


class _Line:
    """The line of one request; its thread keeps the seconds going."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._stage: Stage | None = None
        self._ended = threading.Event()
        self._writing = threading.Lock()

    def show(self, stage: Stage) -> None:
        self._stage = stage
        self._write()

    def end(self) -> None:
        with self._writing:
            self._ended.set()
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()

    def run(self) -> None:
        while not self._ended.wait(_TICK_S):
            self._write()

    def _write(self) -> None:
        with self._writing:
            if self._stage is not None and not self._ended.is_set():
                seconds = time.monotonic() - self._began
                sys.stderr.write(f"{_CLEAR_LINE}{self._stage} … {seconds:.0f} s")
                sys.stderr.flush()


def can_ask() -> bool:
    """Whether there is a person who reads standard error and types on standard input."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def confirm(server: UnknownServer) -> bool:
    """Ask whether a server that is seen for the first time is to be trusted from now on."""
    sys.stderr.write(
        f"The server {server.address} is not known yet.\n"
        f"Its certificate is {server.fingerprint}\n"
        "If `stap-server cert show` on that host says the same, it is the right one.\n"
    )
    while True:
        sys.stderr.write("Trust it from now on (yes/no)? ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
        if answer.strip().lower() in {"yes", "no"} or not answer:
            return answer.strip().lower() == "yes"
