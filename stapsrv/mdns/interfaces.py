"""This host's network interfaces, read from the kernel (rtnetlink(7)), and which to advertise on."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import attrs

from stapsrv.system.readiness import wait_readable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# An address and the network that it is in.
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

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
# Only of an IPv6 address; the same bit of an IPv4 address is IFA_F_SECONDARY.
_IFA_F_TEMPORARY = 0x01
_IFA_F_UNUSABLE = 0x08 | 0x20 | 0x40  # IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 65536
# Taken at a time; more are another change.
_MAX_NOTICES = 1000
# The kernel answers at once; this only keeps a worker thread from waiting for ever.
_REPLY_TIMEOUT_S = 5.0


@attrs.frozen(kw_only=True)
class NetworkLink:
    """A network interface and its usable addresses, in the kernel's order; ``up``: a cable is in, too."""

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
        """The IPv6 addresses to announce: link-local ones only where there is no other."""
        # As avahi does it. With the same host name and an address that avahi does not announce, avahi would
        # see another host of its name, and rename its own.
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
    """This host's network at one moment."""

    links: tuple[NetworkLink, ...]
    # Every address of this host, also those of no link here and those not to be announced.
    own: frozenset[Address]
    # The names and addresses that were asked for and that no link has.
    missing: tuple[str, ...] = ()

    def select(self, wanted: Sequence[str]) -> Network:
        """Return the network with the links that have these names or addresses, or with the usual ones.

        Usual are links that are up and can multicast, tunnels excepted, or loopback where there is no other.
        """
        links = _select(self.links, wanted)
        found = {link.name for link in links} | {each.ip for link in links for each in link.addresses}
        missing = tuple(word for word in wanted if word not in found and _parse(word) not in found)
        return Network(links, self.own, missing)


def _select(links: Iterable[NetworkLink], wanted: Sequence[str]) -> tuple[NetworkLink, ...]:
    usable = [link for link in links if link.up and link.addresses]
    if wanted:
        addresses = {_parse(word) for word in wanted}
        narrowed = (_narrow(link, wanted, addresses) for link in usable)
        return tuple(link for link in narrowed if link.addresses)
    shared = [link for link in usable if link.multicast and not (link.loopback or link.point_to_point)]
    return tuple(shared or [link for link in usable if link.loopback])


def _narrow(link: NetworkLink, names: Sequence[str], wanted: set[Address | None]) -> NetworkLink:
    if link.name in names:
        return link
    return attrs.evolve(link, addresses=tuple(each for each in link.addresses if each.ip in wanted))


def _parse(word: str) -> Address | None:
    try:
        return ipaddress.ip_address(word)
    except ValueError:
        return None


def read_network() -> Network:
    """Return every link and address of this network namespace; takes 0.1 ms.

    Raises:
        OSError: the kernel does not list them, as in some sandboxes.
    """
    # A sandbox may deny the socket's family.
    with _open_socket() as rtnetlink:
        rtnetlink.settimeout(_REPLY_TIMEOUT_S)
        found = [
            address
            for payload in _dump(rtnetlink, _RTM_GETADDR, _RTM_NEWADDR)
            if (address := _parse_address(payload)) is not None
        ]
        links = [_parse_link(payload, found) for payload in _dump(rtnetlink, _RTM_GETLINK, _RTM_NEWLINK)]
    return Network(tuple(links), frozenset(each.interface.ip for each in found))


class LinkMonitor:
    """Waits for links and addresses that come, go or change (rtnetlink(7)).

    Raises:
        OSError: the kernel refuses.
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
        await wait_readable(self._socket)
        try:
            for _ in range(_MAX_NOTICES):
                self._socket.recv(_RECEIVE_BYTES)
        except OSError:
            # Drained (EAGAIN), or more notices than the socket could hold (ENOBUFS): a change in either case.
            return

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class _FoundAddress(NamedTuple):
    link: int
    interface: Interface
    usable: bool


def _open_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def _dump(rtnetlink: socket.socket, request: int, reply: int) -> Iterator[bytes]:
    rtnetlink.send(_HEADER.pack(_HEADER.size + 4, request, _REQUEST_DUMP, 0, 0) + bytes(4))
    while True:
        data = rtnetlink.recv(_RECEIVE_BYTES)
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
    # A temporary address is made to be forgotten soon.
    unusable = _IFA_F_UNUSABLE if family == socket.AF_INET else _IFA_F_UNUSABLE | _IFA_F_TEMPORARY
    return _FoundAddress(index, ipaddress.ip_interface((packed, prefix)), flags & unusable == 0)


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
