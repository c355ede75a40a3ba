"""Listening sockets that a service manager opened for this process (sd_listen_fds(3)), by their names.

``control`` is the control socket, every other name the nickname of the server whose port it is. They stay
open between two lives of a server, and of the daemon: a client that connects meanwhile waits, and is not
refused. But none is left waiting at the port of a server that is stopped or has failed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import anyio
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError
from stapsrv.supervisor.server.listener import Peer, reset

CONTROL = "control"
_FIRST_DESCRIPTOR = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
# Descriptors passed: more than a service manager could ever open for us.
_MAX_DESCRIPTORS = 1024
# Between looks at ports that nobody serves: as long as a client sleeps before it comes back.
_CHECK_INTERVAL_S = 1.0
_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})
_NAME_IT = "give the socket unit FileDescriptorName=, the server's nickname or control"


class PassedSockets:
    """The sockets that were passed, by name; each is kept, and given out as a duplicate."""

    def __init__(self, sockets: Mapping[str, socket.socket] | None = None) -> None:
        self._sockets = dict(sockets or {})

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, pid: int) -> PassedSockets:
        """Take over the sockets of ``$LISTEN_FDS``, if they are meant for process ``pid``.

        Raises:
            ConfigError: the variables contradict each other, or a descriptor is no listening socket.
        """
        if not environ.get("LISTEN_FDS") or _number(environ, "LISTEN_PID", 2**22) != pid:
            return cls()
        count = _number(environ, "LISTEN_FDS", _MAX_DESCRIPTORS)
        names = environ.get("LISTEN_FDNAMES", "").split(":")
        if count and len(names) != count:
            raise ConfigError(
                f"names {len(names)} descriptors, and {count} are passed",
                where=f"LISTEN_FDNAMES={environ.get('LISTEN_FDNAMES', '')}",
                remedy=_NAME_IT,
            )
        sockets: dict[str, socket.socket] = {}
        for descriptor, name in zip(range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + count), names, strict=False):
            if name in sockets:
                remedy = "give its socket unit one ListenStream=, and each unit a FileDescriptorName="
                raise _unusable(name, "is passed twice", remedy)
            sockets[name] = _listening(descriptor, name)
        return cls(sockets)

    def control(self, path: Path) -> socket.socket | None:
        """Return the control socket, which the caller closes, or None if none was passed.

        Raises:
            ConfigError: it does not listen at ``path``.
        """
        passed = self._sockets.get(CONTROL)
        if passed is None:
            return None
        bound = Path(passed.getsockname())
        if bound.resolve() != path.resolve():
            remedy = f"give its socket unit ListenStream={path}, or set STAT_PATH"
            raise _unusable(CONTROL, f"listens at {bound}, and commands come to {path}", remedy)
        return passed.dup()

    def port_of(self, settings: ServerSettings) -> socket.socket | None:
        """Return the socket of a server's port, which the caller closes, or None if none was passed.

        Raises:
            ConfigError: the settings name addresses, or another port.
        """
        name = settings.nickname or CONTROL
        passed = None if name == CONTROL else self._sockets.get(name)
        if passed is None:
            return None
        if settings.access.listen:
            problem = f"decides where the server listens, and so does LISTEN={settings.access.listen[0]}"
            raise _unusable(name, problem, "leave LISTEN out")
        port = passed.getsockname()[1]
        if settings.port not in {0, port}:
            problem = f"listens on port {port}, and the server's is {settings.port}"
            raise _unusable(name, problem, "give both the same, or leave PORT out")
        return passed.dup()

    async def reset_unserved(self, is_served: Callable[[str], bool], log: Log) -> None:
        """Reset connections to the ports of servers that do not run, once a second, until cancelled."""
        ports = {name: port for name, port in self._sockets.items() if name != CONTROL}
        while ports:
            await anyio.sleep(_CHECK_INTERVAL_S)
            for name, port in ports.items():
                if not is_served(name):
                    _reset_waiting(port, log)

    def check_all_used(self, servers: Iterable[ServerSettings], *, controlled: bool) -> None:
        """Refuse a socket that nobody accepts from; ``controlled``: there is a control socket.

        Raises:
            ConfigError: there is such a socket, or the only server's is not at its port.
        """
        nicknames = set()
        for settings in servers:
            nicknames.add(settings.nickname)
            # One that is commanded says so itself when it is launched, and hinders no other.
            port = None if controlled else self.port_of(settings)
            if port is not None:
                port.close()
        for name in self._sockets:
            if name == CONTROL and not controlled:
                problem = "is passed, and a single server is not commanded"
                raise _unusable(name, problem, "leave out the options that describe a server")
            if name != CONTROL and name not in nicknames:
                raise _unusable(name, "is passed, and no configured server has this nickname", _NAME_IT)


def _reset_waiting(port: socket.socket, log: Log) -> None:
    for _ in range(_MAX_DESCRIPTORS):
        try:
            accepted, sockaddr = port.accept()
        except OSError:
            return
        log.warning("connection.refused", peer=Peer.of(sockaddr), reason="the server does not run")
        reset(accepted)


def without_passed(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for children, which are passed none of this."""
    return {name: value for name, value in environ.items() if name not in _VARIABLES}


def _unusable(name: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, where=f"socket '{name}'", remedy=remedy)


def _number(environ: Mapping[str, str], name: str, most: int) -> int:
    text = environ.get(name, "")
    if not (text.isascii() and text.isdigit()) or int(text) > most:
        raise ConfigError(
            f"expected a number from 0 to {most}",
            where=f"{name}={text}",
            remedy="leave it to the service manager",
        )
    return int(text)


def _listening(descriptor: int, name: str) -> socket.socket:
    where = f"socket '{name}', descriptor {descriptor}"
    try:
        # Passed descriptors are inheritable, and no compile may have them.
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - positional in the standard library
        passed = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise ConfigError(f"is no socket ({exc.strerror})", where=where) from exc
    wanted = passed.family == socket.AF_UNIX if name == CONTROL else passed.family in _INTERNET
    if not wanted:
        kind = "a Unix" if name == CONTROL else "an Internet"
        passed.detach()
        raise ConfigError(f"is not {kind} socket", where=where, remedy=_NAME_IT)
    if passed.type != socket.SOCK_STREAM or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.detach()
        raise ConfigError(
            "does not listen for streams", where=where, remedy="give its unit ListenStream= and Accept=no"
        )
    passed.setblocking(False)  # noqa: FBT003 - positional in the standard library
    return passed
