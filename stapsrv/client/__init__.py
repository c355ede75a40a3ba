"""A client of SystemTap's compile servers, without SystemTap; pure Python, on Linux and macOS.

    from stapsrv.client import Server

    server = Server("build.example:5001", trust="SHA256:…")
    result = server.compile('probe begin { exit() }', release="6.1.0-50-amd64")

All names below are stable (``docs/client.md``). The control API of the supervisors on this host comes with
the server's distribution alone, ``stapsrv``: ``SyncControlClient``, ``SupervisorNotRunning`` and
``find_sockets``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stapsrv.client.discovery import FoundServer, find_servers
    from stapsrv.client.errors import ClientError, ServerNotTrusted, ServerUnavailable, UnknownServer
    from stapsrv.client.exchange import Stage
    from stapsrv.client.job import Job
    from stapsrv.client.known_servers import KnownServers
    from stapsrv.client.output import write_result
    from stapsrv.client.response import Result
    from stapsrv.client.server import Outcome, Server
    from stapsrv.client.trust import Certificates, Trust
    from stapsrv.control.client import SupervisorNotRunning, SyncControlClient, find_sockets
    from stapsrv.errors import ProtocolError, StapsrvError

_HOMES = {
    "Certificates": "client.trust",
    "ClientError": "client.errors",
    "FoundServer": "client.discovery",
    "Job": "client.job",
    "KnownServers": "client.known_servers",
    "Outcome": "client.server",
    "ProtocolError": "errors",
    "Result": "client.response",
    "Server": "client.server",
    "ServerNotTrusted": "client.errors",
    "ServerUnavailable": "client.errors",
    "Stage": "client.exchange",
    "StapsrvError": "errors",
    "SupervisorNotRunning": "control.client",
    "SyncControlClient": "control.client",
    "Trust": "client.trust",
    "UnknownServer": "client.errors",
    "find_servers": "client.discovery",
    "find_sockets": "control.client",
    "write_result": "client.output",
}
__all__ = [
    "Certificates",
    "ClientError",
    "FoundServer",
    "Job",
    "KnownServers",
    "Outcome",
    "ProtocolError",
    "Result",
    "Server",
    "ServerNotTrusted",
    "ServerUnavailable",
    "Stage",
    "StapsrvError",
    "SupervisorNotRunning",
    "SyncControlClient",
    "Trust",
    "UnknownServer",
    "find_servers",
    "find_sockets",
    "write_result",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Late: to compile, no zeroconf and no control socket is needed.
    from importlib import import_module  # noqa: PLC0415

    try:
        return getattr(import_module(f"stapsrv.{_HOMES[name]}"), name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not exc.name.startswith("stapsrv"):
            raise
        raise ImportError(f"{name} comes with the server: pip install stapsrv") from exc
