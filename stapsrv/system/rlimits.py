"""The limit of open files, and how many connections it allows."""

from __future__ import annotations

import contextlib
import resource

from structlog.typing import FilteringBoundLogger as Log

# For the process itself: logs, listeners, control connections, multicast DNS, the event loop. A quarter of
# all files, if that is more, is left to compiles: pipes, processes, files.
_OWN_FILES = 96
# When nothing is configured and the limit is high.
_DEFAULT_CONNECTIONS = 4096


def raise_open_files() -> None:
    """Raise this process's limit of open files to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A hard limit of "unlimited" is more than the kernel grants (fs.nr_open).
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def affordable_connections(open_files: int) -> int:
    """Return how many connections may be open at once where ``open_files`` files may be."""
    return max(1, min(open_files - _OWN_FILES, open_files * 3 // 4))


def max_connections(wanted: int | None) -> int:
    """Return how many connections to accept: those wanted, or a default, as far as open files allow."""
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(wanted or _DEFAULT_CONNECTIONS, affordable_connections(open_files))


def warn_of_few_files(wanted: int, log: Log) -> None:
    """Log a warning if open files do not allow ``wanted`` connections."""
    affordable = max_connections(wanted)
    if affordable < wanted:
        log.warning("listener.descriptors", wanted=wanted, affordable=affordable)
