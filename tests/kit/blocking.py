"""Finds what would block the event loop: calls into file systems, names and waits on the loop's own thread.

The interpreter reports such calls beforehand (audit events, PEP 578), so that none goes unseen because it
happened to be quick. A call is named by the nearest line of this project.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).parents[2] / "stapsrv")
_BLOCKING = frozenset(
    {"open", "time.sleep", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "glob.glob"}
    | {"subprocess.Popen", "os.system", "os.posix_spawn", "tempfile.mkdtemp", "tempfile.mkstemp"}
    | {f"os.{name}" for name in ("listdir", "scandir", "walk", "mkdir", "rmdir", "remove", "rename", "link")}
    | {f"os.{name}" for name in ("symlink", "chmod", "chown", "truncate", "utime")}
    | {f"shutil.{name}" for name in ("rmtree", "copyfile", "copytree", "move")}
)
"""Audit events, as the library reference lists them. ``os.stat`` has none."""


class _Watch:
    """The one audit hook, which cannot be taken back, and what it has found."""

    def __init__(self) -> None:
        self.thread: int | None = None
        self.found: list[str] = []
        self._installed = False

    def install(self) -> None:
        if not self._installed:
            sys.addaudithook(self._hear)
            self._installed = True

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.thread is None or event not in _BLOCKING or threading.get_ident() != self.thread:
            return
        if event == "open" and str(arguments[0]).startswith("/proc/"):
            # The kernel answers from memory, at once.
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        if frame is not None:
            module = frame.f_code.co_filename.removeprefix(f"{_PACKAGE}/")
            self.found.append(f"{module} {frame.f_code.co_name}: {event} {arguments[0]!r}")


_WATCH = _Watch()


@contextlib.contextmanager
def watched_loop() -> Iterator[list[str]]:
    """Watch this thread, which is the event loop's; yields what was found so far."""
    _WATCH.install()
    _WATCH.found = []
    _WATCH.thread = threading.get_ident()
    try:
        yield _WATCH.found
    finally:
        _WATCH.thread = None
