"""The listening sockets of a server, and the addresses of its peers."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

import attrs

from stapsrv.config.addresses import socket_address
from stapsrv.errors import ConfigError

# Connections that the kernel completes for us while the loop is busy; the kernel may lower it.
_BACKLOG = 1024

# Of IPv4, and of IPv6.
_UNSPECIFIED = ("0.0.0.0", "::")  # noqa: S104 - where an operator wants it

# To find a port that is free on every address, where the kernel picks one that is free on the first.
_ATTEMPTS = 20

_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

# As accept gives it for IPv4, and for IPv6.
SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


@attrs.frozen
class Peer:
    """The address and port of a peer; IPv4 is never shown as mapped into IPv6."""

    address: str
    port: int

    @classmethod
    def of(cls, sockaddr: SocketAddress) -> Peer:
        """Return the peer of a socket address as ``accept`` gives it."""
        address, _, zone = sockaddr[0].partition("%")
        parsed = ipaddress.ip_address(address)
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            return cls(str(parsed.ipv4_mapped), sockaddr[1])
        return cls(f"{parsed}%{zone}" if zone else str(parsed), sockaddr[1])

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def open_listeners(port: int, addresses: Sequence[str]) -> tuple[socket.socket, ...]:
    """Listen on each address, or on all of this host's for none, on one port or a free one for 0.

    The caller closes the sockets, which are non-blocking.

    Raises:
        ConfigError: the port is in use, reserved for root, or cannot be listened on; or an address is not
            this host's.
    """
    if not addresses:
        return (open_listener(port),)
    for _ in range(_ATTEMPTS if port == 0 else 0):
        with contextlib.suppress(ConfigError):
            return _open_each(port, addresses)
    return _open_each(port, addresses)


def open_listener(port: int) -> socket.socket:
    """Listen on every IPv4 and IPv6 address of this host, as :func:`open_listeners` does for none."""
    try:
        return listen_at("::", port, only=False)
    except OSError as exc:
        if exc.errno not in _NO_IPV6:
            _refuse(exc, port)
    try:
        return listen_at("0.0.0.0", port, only=True)  # noqa: S104 - a compile server serves the network
    except OSError as exc:
        _refuse(exc, port)


def listen_at(address: str, port: int, *, only: bool, backlog: int = _BACKLOG) -> socket.socket:
    """Return a listening, non-blocking socket at one address; at ``::`` with ``only`` on IPv6 alone.

    The caller closes it. An IPv6 address may name its link after a ``%``; port 0 lets the kernel choose. The
    kernel completes up to ``backlog`` connections while the event loop is busy.

    Raises:
        OSError: the address or the port cannot be listened on.
    """
    place = socket_address(address, port)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of an earlier life, in TIME_WAIT, do not keep the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
        listener.bind(place)
        listener.listen(backlog)
        listener.setblocking(False)  # noqa: FBT003 - positional in the standard library
    except BaseException:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> Peer:
    """Return the address that a listener is bound to."""
    return Peer.of(listener.getsockname())


def reset(connection: socket.socket) -> None:
    """Close a connection with a TCP reset."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _open_each(port: int, addresses: Sequence[str]) -> tuple[socket.socket, ...]:
    with contextlib.ExitStack() as undo:
        opened: list[socket.socket] = []
        for address in _needed(addresses):
            try:
                listener = listen_at(address, port, only=True)
            except OSError as exc:
                _refuse(exc, port, address)
            undo.callback(listener.close)
            opened.append(listener)
            port = port or address_of(listener).port
        undo.pop_all()
    return tuple(opened)


def _needed(addresses: Sequence[str]) -> tuple[str, ...]:
    """Return each address once, and none that an unspecified one of its protocol stands for."""
    every = {address for address in addresses if address in _UNSPECIFIED}
    return tuple(
        dict.fromkeys(
            address for address in addresses if address in every or _UNSPECIFIED[":" in address] not in every
        )
    )


def _refuse(exc: OSError, port: int, address: str | None = None) -> NoReturn:
    remedy: str | None = None
    where = f"port {port}" if address is None else f"address {address}, port {port}"
    match exc.errno:
        case errno.EADDRINUSE:
            reason, remedy = "is in use by another program", "give a free one, or 0 for any, with --port"
        case errno.EACCES:
            reason, remedy = "is reserved for root", "give one above 1023 with --port"
        case errno.EADDRNOTAVAIL | errno.ENODEV:
            where = f"address {address}"
            reason, remedy = "is not one of this host's", "give another one, or none for all, with --listen"
        case _:
            reason = f"cannot be listened on: {exc.strerror}"
    raise ConfigError(reason, where=where, remedy=remedy) from exc
