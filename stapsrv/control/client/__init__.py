"""The client of the control socket, for the command line and for anybody's programs.

:class:`SyncControlClient` blocks, and needs the standard library only; in an asynchronous program, call it
in a
thread. Its methods return plain dictionaries, described in :mod:`stapsrv.control.protocol.schema` and
``docs/control.md``. Every wait has a deadline.

Errors:
    SupervisorNotRunning: nobody listens there.
    ControlError: everything else; ``code`` is one of :class:`stapsrv.control.protocol.jsonrpc.Code`. The
        supervisor refused, or (TIMED_OUT, LOST) no answer came. A command that it had taken up goes on all
        the
        same.

An action that fails for some servers is no error: each outcome has its own.

Example::

    from stapsrv.control.client import SyncControlClient, find_sockets

    for path in find_sockets(Path("/run/stap-server")):
        with SyncControlClient(path) as client:
            for server in client.status()["servers"]:
                print(path.parent.name, server["id"], server["nickname"], server["state"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stapsrv.control.client.core import SupervisorNotRunning
    from stapsrv.control.client.discovery import find_sockets
    from stapsrv.control.client.sync import SyncControlClient

_HOMES = {
    "SupervisorNotRunning": "core",
    "SyncControlClient": "sync",
    "find_sockets": "discovery",
}
__all__ = ["SupervisorNotRunning", "SyncControlClient", "find_sockets"]


def __getattr__(name: str) -> object:
    """Load a module of this package when one of its names is asked for: a plain ``status`` needs none."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
