"""A Zeroconf that announces on each link, over each protocol, only what is valid there.

python-zeroconf announces every address of the host everywhere, but an address of another link is useless on
this one (RFC 6762, 6.2). It also hears packets from beyond the link, can answer a question after the goodbye,
and withdraws the host's addresses with its last service. Each override below says which of these it corrects.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from zeroconf import (
    DNSAddress,
    DNSNsec,
    DNSOutgoing,
    DNSPointer,
    DNSRecord,
    DNSService,
    DNSText,
    IPVersion,
    Zeroconf,
)

from stapsrv.mdns.interfaces import Address, NetworkLink
from stapsrv.mdns.records import SERVICE_TYPE

_PORT = 5353

_SO_ATTACH_FILTER = 26
_NETWORK_HEADER = 0x100000000 - 0x100000  # SKF_NET_OFF: where the packet's IP header begins
_HOPS = 255
_WHOLE, _NOTHING = 0xFFFFFFFF, 0

_LOAD_BYTE, _SHIFT_RIGHT, _RETURN = 0x30, 0x74, 0x06
_JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST = 0x15, 0x35

# Classic BPF (Documentation/networking/filter.rst). Multicast never comes through a router, but port 5353
# also receives unicast from anywhere, by which a distant host could contest names. Every responder sends with
# a hop limit of 255 (RFC 6762, 11), so a unicast packet with less was routed.
_FILTER = (
    # Instruction, how many to skip if true, if false, operand.
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
    (_SHIFT_RIGHT, 0, 0, 4),
    (_JUMP_IF_EQUAL, 4, 0, 6),
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 16),  # IPv4: the destination
    (_JUMP_IF_AT_LEAST, 6, 0, 224),
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 8),  # the time to live
    (_JUMP_IF_EQUAL, 4, 5, _HOPS),
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 24),  # IPv6: the destination
    (_JUMP_IF_EQUAL, 2, 0, 0xFF),
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 7),  # the hop limit
    (_JUMP_IF_EQUAL, 0, 1, _HOPS),
    (_RETURN, 0, 0, _WHOLE),
    (_RETURN, 0, 0, _NOTHING),
)


def drop_routed_packets(receiver: socket.socket) -> None:
    """Have the kernel drop unicast packets that may have come through a router (RFC 6762, 11).

    Raises:
        OSError: this kernel has no socket filters.
    """
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _FILTER)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(_FILTER), ctypes.addressof(instructions))
    receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


class _Sender(Protocol):
    """The part of zeroconf's private wrapper of a socket that is used here."""

    is_ipv6: bool
    multicast_index: int
    sock_name: tuple[str, ...]


class PerLinkZeroconf(Zeroconf):
    """Zeroconf on the given links, each of which has an address.

    ``on_error`` gets, in zeroconf's thread, the errors that nothing else reports.

    Raises:
        OSError: a socket was refused.
        RuntimeError: a link went away meanwhile.
    """

    def __init__(self, links: Sequence[NetworkLink], on_error: Callable[[str], None]) -> None:
        self._links = tuple(links)
        # Keys of host names that are announced no more, whatever services still refer to them.
        self.suppressed_hosts: frozenset[str] = frozenset()
        # Replaced, not changed: zeroconf's thread may be iterating over it.
        self._restrictions: dict[str, frozenset[bytes]] = {}
        super().__init__(interfaces=_interfaces(links), ip_version=_ip_version(links))
        if self.loop is not None:
            self.loop.set_exception_handler(
                lambda _loop, context: on_error(str(context.get("exception") or context["message"]))
            )

    @property
    def can_send(self) -> bool:
        """Whether any link took multicast."""
        return bool(self.engine.senders)

    def set_links(self, links: Sequence[NetworkLink]) -> None:
        """Use these links from now on, and announce everything on the new ones; takes up to 0.5 s."""
        self._links = tuple(links)
        self.update_interfaces(_interfaces(links), _ip_version(links))

    def filter_receivers(self) -> None:
        """Drop packets from beyond the links; to be repeated after each :meth:`set_links`."""
        for receiver in tuple(self.engine.readers):
            # A kernel without filters (gVisor's) receives everything, as with any other responder.
            with contextlib.suppress(OSError):
                drop_routed_packets(receiver.sock)

    # An address of zeros stands for all of its protocol.
    def restrict(self, key: str, addresses: frozenset[bytes] | None) -> None:
        """Announce a service only where all addresses announced are among these; None lifts that."""
        # A client that heard of it elsewhere would connect to an address without a listener.
        others = {name: limit for name, limit in self._restrictions.items() if name != key}
        self._restrictions = others if addresses is None else {**others, key: addresses}

    def async_leave(self, links: Sequence[NetworkLink]) -> None:
        """Say goodbye on all but ``links``; in zeroconf's loop, before :meth:`set_links`."""
        remaining = {link.index for link in links}
        for sender in self.engine.senders:
            link = self._link_of(sender)
            if link is not None and link.index not in remaining:
                for info in self.registry.async_get_service_infos():
                    self.async_send(self.generate_service_broadcast(info, 0), transport=sender)
        # From here on nothing is sent on the others: a late answer would undo the goodbye.
        self._links = tuple(links)

    def async_send(
        self,
        out: DNSOutgoing,
        addr: str | None = None,
        port: int = _PORT,
        v6_flow_scope: tuple[()] | tuple[int, int] = (),
        transport: object = None,
    ) -> None:
        """Send the part of ``out`` that is valid on each link; zeroconf sends everything through here."""
        # One that was given is found again among all of them: there it has zeroconf's own, private type.
        everywhere = (*self.engine.senders, *self.engine.readers)
        given = [each for each in everywhere if each is transport]
        for sender in self.engine.senders if transport is None else given:
            if addr is not None:
                part = self._valid_part(out, self._addresses_for_peer(addr, v6_flow_scope))
            elif (link := self._link_of(sender)) is not None:
                part = self._valid_part(out, _packed(link.ipv6 if sender.is_ipv6 else link.ipv4))
            else:
                part = None
            if part is not None:
                super().async_send(part, addr, port, v6_flow_scope, sender)

    def _valid_part(self, out: DNSOutgoing, addresses: frozenset[bytes]) -> DNSOutgoing | None:
        """Return the part of ``out`` for a link that has ``addresses``; None if nothing is left."""
        part = DNSOutgoing(out.flags, out.multicast, out.id)
        part.questions = out.questions
        part.authorities = [record for record in out.authorities if _is_on_link(record, addresses)]
        if out.is_query():
            # The answers in a query are known ones, which others need not repeat (RFC 6762, 7.1).
            part.answers = out.answers
            return part
        part.answers = [answer for answer in out.answers if self._is_valid(answer[0], addresses)]
        part.additionals = [record for record in out.additionals if self._is_valid(record, addresses)]
        return part if part.answers else None

    def _is_valid(self, record: DNSRecord, addresses: frozenset[bytes]) -> bool:
        if isinstance(record, DNSAddress | DNSNsec):
            # stap 4.8 takes the family from the protocol that it heard a service over: an IPv4 address over
            # IPv6 becomes "::%2" and costs it 5 s. And no goodbye to the host's addresses: other programs of
            # this host, avahi above all, may announce them too.
            return (
                record.ttl > 0 and record.key not in self.suppressed_hosts and _is_on_link(record, addresses)
            )
        if record.ttl == 0:
            return True
        if isinstance(record, DNSPointer) and record.key == SERVICE_TYPE:
            return self._is_announced(record.alias_key, addresses)
        if isinstance(record, DNSService | DNSText):
            return self._is_announced(record.key, addresses)
        return True

    def _is_announced(self, key: str, addresses: frozenset[bytes]) -> bool:
        """Whether a service is registered, and listens on all of ``addresses``."""
        allowed = self._restrictions.get(key)
        if allowed is not None and not (
            addresses and all(not {each, bytes(len(each))}.isdisjoint(allowed) for each in addresses)
        ):
            return False
        # Frequent answers are delayed (RFC 6762, 14). One that follows the goodbye would bring the service
        # back for 75 minutes.
        return self.registry.async_get_info_name(key) is not None

    def _link_of(self, sender: _Sender) -> NetworkLink | None:
        """Return the link that a socket sends on; None for a socket that is about to be closed."""
        if sender.is_ipv6:
            return next((link for link in self._links if link.index == sender.multicast_index), None)
        address = ipaddress.ip_address(sender.sock_name[0])
        return next((link for link in self._links if address in link.ipv4), None)

    def _addresses_for_peer(self, peer: str, scope: tuple[()] | tuple[int, int]) -> frozenset[bytes]:
        address: Address = ipaddress.ip_address(peer.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        for link in self._links:
            if isinstance(address, ipaddress.IPv4Address):
                if link.reaches(address):
                    return _packed(link.ipv4)
            elif link.index == scope[1] if address.is_link_local and scope else link.reaches(address):
                return _packed(link.ipv6)
        return frozenset()


def _is_on_link(record: DNSRecord, addresses: frozenset[bytes]) -> bool:
    return not isinstance(record, DNSAddress) or record.address in addresses


def _interfaces(links: Sequence[NetworkLink]) -> list[str | int | tuple[tuple[str, int, int], int]]:
    """Return the links in zeroconf's terms: an IPv4 address, and for IPv6 the interface's index."""
    ipv4 = [str(link.ipv4[0]) for link in links if link.ipv4]
    return [*ipv4, *(link.index for link in links if link.ipv6)]


def _ip_version(links: Sequence[NetworkLink]) -> IPVersion:
    # Where IPv6 is switched off, even opening a socket fails.
    if not any(link.ipv6 for link in links):
        return IPVersion.V4Only
    return IPVersion.All if any(link.ipv4 for link in links) else IPVersion.V6Only


def _packed(addresses: Iterable[Address]) -> frozenset[bytes]:
    return frozenset(address.packed for address in addresses)
