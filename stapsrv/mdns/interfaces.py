"""The host's links as the kernel tells them, and news of their changes (rtnetlink(7)).

The host's links, and on which of them servers are advertised. Pure.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import anyio
import attrs

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_RTM_NEWLINK = 16
_RTM_GETLINK = 18
_RTM_NEWADDR = 20
_RTM_GETADDR = 22
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR

_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_POINTOPOINT = 0x10
_IFF_RUNNING = 0x40
_IFF_MULTICAST = 0x1000
_IFLA_IFNAME = 3

_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_FLAGS = 8
_IFA_F_TEMPORARY = 0x01
"""Of an IPv6 address: made to be forgotten soon. (The same bit of an IPv4 address means another thing.)"""
_NOT_NOW = 0x08 | 0x20 | 0x40
"""IFA_F_DADFAILED: somebody else has it; IFA_F_DEPRECATED; IFA_F_TENTATIVE: not known yet to be free."""

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 65536
_REPLY_S = 5.0
"""The kernel answers at once; this only keeps a worker thread from waiting for ever."""


def read_network() -> Network:
    """Return every link and address of this network namespace; takes 0.1 ms.

    Raises:
        OSError: the kernel does not tell, which is for a sandbox to decide.
    """
    with _open_socket() as asker:
        asker.settimeout(_REPLY_S)
        found = [
            address
            for payload in _dump(asker, _RTM_GETADDR, _RTM_NEWADDR)
            if (address := _parse_address(payload)) is not None
        ]
        links = tuple(_parse_link(payload, found) for payload in _dump(asker, _RTM_GETLINK, _RTM_NEWLINK))
    return Network(links, frozenset(each.interface.ip for each in found))


class LinkMonitor:
    """Hears of every link and address that comes, goes or changes.

    Raises:
        OSError: the kernel does not tell.
    """

    def __init__(self) -> None:
        self._socket = _open_socket()
        try:
            self._socket.bind((0, _GROUPS))
            self._socket.setblocking(False)  # noqa: FBT003 - positional in the standard library
        except BaseException:
            self._socket.close()
            raise

    async def wait_changed(self) -> None:
        """Wait for a change; several at once are one."""
        await anyio.wait_readable(self._socket)
        try:
            while self._socket.recv(_RECEIVE_BYTES):
                pass
        except OSError:
            # Nothing more, or more than the socket could hold: it is news in either case.
            return

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


class _FoundAddress(NamedTuple):
    """An address of a link; not ``usable``: not to be announced now."""

    link: int
    interface: Interface
    usable: bool


def _open_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def _dump(asker: socket.socket, request: int, reply: int) -> Iterator[bytes]:
    """Ask for everything of one kind, and yield what each message carries."""
    asker.send(_HEADER.pack(_HEADER.size + 4, request, _REQUEST_DUMP, 0, 0) + bytes(4))
    while True:
        data = asker.recv(_RECEIVE_BYTES)
        offset = 0
        while offset < len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            payload = data[offset + _HEADER.size : offset + length]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                raise OSError(code, os.strerror(code))
            if kind == reply:
                yield payload
            offset += _aligned(length)


def _parse_link(payload: bytes, found: list[_FoundAddress]) -> NetworkLink:
    _family, _kind, index, flags, _change = _LINK.unpack_from(payload)
    name = _attributes(payload[_LINK.size :]).get(_IFLA_IFNAME, b"")
    return NetworkLink(
        index=index,
        name=os.fsdecode(name.rstrip(b"\0")),
        up=flags & _IFF_UP != 0 and flags & _IFF_RUNNING != 0,
        multicast=flags & _IFF_MULTICAST != 0,
        loopback=flags & _IFF_LOOPBACK != 0,
        point_to_point=flags & _IFF_POINTOPOINT != 0,
        addresses=tuple(each.interface for each in found if each.usable and each.link == index),
    )


def _parse_address(payload: bytes) -> _FoundAddress | None:
    family, prefix, flags, _scope, index = _ADDRESS.unpack_from(payload)
    attributes = _attributes(payload[_ADDRESS.size :])
    # On a tunnel IFA_ADDRESS is the other end's.
    packed = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
    if packed is None or family not in {socket.AF_INET, socket.AF_INET6}:
        return None
    if _IFA_FLAGS in attributes:
        (flags,) = struct.unpack_from("=I", attributes[_IFA_FLAGS])
    unusable = _NOT_NOW if family == socket.AF_INET else _NOT_NOW | _IFA_F_TEMPORARY
    address = ipaddress.ip_interface((packed, prefix))
    return _FoundAddress(index, address, flags & unusable == 0)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""An address and the network that it is in."""


@attrs.frozen(kw_only=True)
class NetworkLink:
    """A network interface and its addresses.

    Attributes:
        index: the kernel's number for it.
        name: such as ``eth0``.
        up: it is switched on, and something is plugged in.
        multicast: it can send to many.
        loopback: it leads back to this host.
        point_to_point: it leads to one other host (a tunnel).
        addresses: those that are good for new connections, in the kernel's order.
    """

    index: int
    name: str
    up: bool
    multicast: bool
    loopback: bool
    point_to_point: bool
    addresses: tuple[Interface, ...]

    @property
    def ipv4(self) -> tuple[ipaddress.IPv4Address, ...]:
        """The IPv4 addresses to announce."""
        return tuple(each.ip for each in self.addresses if isinstance(each, ipaddress.IPv4Interface))

    @property
    def ipv6(self) -> tuple[ipaddress.IPv6Address, ...]:
        """The IPv6 addresses to announce: link-local ones only where there is no other, as avahi does it.

        A responder that shares its host's name with avahi must announce no address that avahi does not:
        avahi would see another host of the same name, and rename its own.
        """
        found = [each.ip for each in self.addresses if isinstance(each, ipaddress.IPv6Interface)]
        wider = tuple(address for address in found if not address.is_link_local)
        return wider or tuple(found)

    @property
    def announced(self) -> tuple[Address, ...]:
        """The addresses to announce, of both protocols."""
        return (*self.ipv4, *self.ipv6)

    def reaches(self, peer: Address) -> bool:
        """Whether ``peer`` is in a network of this link."""
        return any(peer in each.network for each in self.addresses)


@attrs.frozen
class Network:
    """What this host's network is at one moment.

    Attributes:
        links: on which servers are advertised, or could be.
        own: every address of this host, the ones that are no good to announce included.
        absent: the names and addresses that were asked for and that no link answers to.
    """

    links: tuple[NetworkLink, ...]
    own: frozenset[Address]
    absent: tuple[str, ...] = ()

    def choose(self, wanted: Sequence[str]) -> Network:
        """Return the network as far as it is to hear of this host's servers.

        Args:
            wanted: names of interfaces and addresses; empty for every link that is up and can multicast
                (tunnels have to be named), or the loopback link where there is no such.
        """
        chosen = _choose(self.links, wanted)
        there = {link.name for link in chosen} | {each.ip for link in chosen for each in link.addresses}
        absent = tuple(word for word in wanted if word not in there and _parse(word) not in there)
        return Network(chosen, self.own, absent)


def _choose(links: Iterable[NetworkLink], wanted: Sequence[str]) -> tuple[NetworkLink, ...]:
    usable = [link for link in links if link.up and link.addresses]
    if wanted:
        named = {_parse(word) for word in wanted}
        return tuple(narrowed for link in usable if (narrowed := _narrow(link, wanted, named)) is not None)
    shared = [link for link in usable if link.multicast and not (link.loopback or link.point_to_point)]
    return tuple(shared or [link for link in usable if link.loopback])


def _narrow(link: NetworkLink, names: Sequence[str], named: set[Address | None]) -> NetworkLink | None:
    """Return ``link`` as far as it is wanted: whole by its name, else the addresses that are named."""
    if link.name in names:
        return link
    addresses = tuple(each for each in link.addresses if each.ip in named)
    return attrs.evolve(link, addresses=addresses) if addresses else None


def _parse(word: str) -> Address | None:
    try:
        return ipaddress.ip_address(word)
    except ValueError:
        return None
