"""Open files: as many as the system allows, and no more connections than they allow."""

from __future__ import annotations

import resource

from structlog.typing import FilteringBoundLogger as Log

_OWN = 96
"""Descriptors of the process itself: logs, listeners, control connections, multicast DNS, the event loop.
A quarter of all, if that is more, is left to compiles: pipes, processes, files."""
_DEFAULT_CONNECTIONS = 4096
"""Where nobody says and descriptors abound."""


def raise_open_files() -> int:
    """Let this process open as many files as the hard limit allows; return how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # A hard limit of "unlimited" is more than the kernel grants (fs.nr_open).
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return hard


def affordable_connections(open_files: int) -> int:
    """Return how many connections may be open at once where ``open_files`` files may be."""
    return max(1, min(open_files - _OWN, open_files * 3 // 4))


def most_connections(wanted: int | None, *, open_files: int | None = None) -> int:
    """Return how many connections are let in: as wanted, or a usual number, as far as files allow it.

    Args:
        wanted: what was asked for, if anything was.
        open_files: that this process may have open; None to look.
    """
    if open_files is None:
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(wanted or _DEFAULT_CONNECTIONS, affordable_connections(open_files))


def warn_of_few_files(wanted: int, log: Log) -> None:
    """Log that open files do not allow ``wanted`` connections, if that is so."""
    affordable = most_connections(wanted)
    if affordable < wanted:
        log.warning("listener.descriptors", wanted=wanted, affordable=affordable)
