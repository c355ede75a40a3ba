"""Clients of the control socket, for the command line and for anybody's programs.

:class:`SyncControlClient` blocks, and needs the standard library only; :class:`ControlClient` works in any
anyio program, on asyncio or Trio. Both have the same methods, which return plain dictionaries, described
in :mod:`stapsrv.control.wireform` and ``docs/control.md``. Every wait has a deadline.

Errors:
    SupervisorNotRunning: nobody listens there.
    ControlError: everything else; ``code`` is one of :class:`stapsrv.control.messages.Code`. The supervisor
        refused, or (TIMED_OUT, LOST) no answer came. A command that it had taken up goes on all the same.

An action that fails for some servers is no error: each outcome has its own.

Example::

    from stapsrv.control.client import SyncControlClient, find_sockets

    for path in find_sockets(Path("/run/stap-server")):
        with SyncControlClient(path) as client:
            for server in client.status()["servers"]:
                print(path.parent.name, server["id"], server["nickname"], server["state"])
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from stapsrv.control.address import SOCKET_NAME
from stapsrv.control.calls import SupervisorNotRunning
from stapsrv.control.sync_client import SyncControlClient

if TYPE_CHECKING:
    from stapsrv.control.async_client import ControlClient, connect

__all__ = ["ControlClient", "SupervisorNotRunning", "SyncControlClient", "connect", "find_sockets"]


def find_sockets(stat_path: Path) -> list[Path]:
    """Return the control sockets below STAT_PATH, in order of their users' names.

    The directory of each is called like the user whose supervisor it is. A socket may be stale: only
    connecting shows whether somebody listens. Directories that may not be looked into are left out.
    """
    found = []
    with contextlib.suppress(OSError):
        for directory in sorted(stat_path.iterdir()):
            path = directory / SOCKET_NAME
            with contextlib.suppress(OSError):
                if path.is_socket():
                    found.append(path)
    return found


def __getattr__(name: str) -> object:
    """Load the asynchronous client when it is asked for: anyio would be felt by who does not need it."""
    if name in {"ControlClient", "connect"}:
        from stapsrv.control import async_client  # noqa: PLC0415 (that is the point)

        return getattr(async_client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
