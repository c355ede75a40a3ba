"""The client of the control socket, for the command line and for other programs.

:class:`SyncControlClient` blocks and needs the standard library only; an asynchronous program calls it in a
thread. Its methods return plain dictionaries (``docs/control.md``). Every wait has a
deadline.

Errors:
    SupervisorNotRunning: nobody listens there.
    ControlError: all others. ``code`` is one of :class:`stapsrv.control.protocol.jsonrpc.Code`: a refusal, or
        no answer (TIMED_OUT, LOST), after which a command that was accepted goes on.

An action that fails for some servers is no error: each outcome has its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stapsrv.control.client.discovery import find_sockets
    from stapsrv.control.client.sync import SupervisorNotRunning, SyncControlClient

_HOMES = {"SupervisorNotRunning": "sync", "SyncControlClient": "sync", "find_sockets": "discovery"}
__all__ = ["SupervisorNotRunning", "SyncControlClient", "find_sockets"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Late, like the modules themselves: a plain status imports this package and needs none of them.
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
