"""A socket that hears its own link alone.

Whatever is sent to a multicast address comes from this link. But port 5353 is open to single packets from
anywhere, and with those a host far away could contest names, or have others flooded with answers. A packet
that no router has touched is known by its hop limit, which every responder sets to 255 (RFC 6762, 11).

The kernel sorts them out, by a filter on the socket (the classic instructions of BPF,
Documentation/networking/filter.rst).

A zeroconf that says on each link, over each protocol, what is true and of use there.

What python-zeroconf does instead, and what comes of it:

* It says all addresses of the host everywhere. An address of another link is of no use on this one
  (RFC 6762, 6.2). And the real client (stap 4.8) takes the address family from the protocol that it heard
  a service over: an IPv4 address heard over IPv6 becomes ``::%2`` to it, and costs it 5 s of attempts.
* Answers to questions that are asked often are delayed (RFC 6762, 14). One that follows a goodbye would
  bring the service back for 75 minutes. So nothing is said of a service that is no longer registered.
* It takes whatever comes to its port, from however far.
* With the last service it says goodbye to the host's addresses. Other programs of this host may have said
  them, too, avahi above all.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from zeroconf import IPVersion, Zeroconf
from zeroconf._dns import DNSAddress, DNSNsec, DNSPointer, DNSRecord, DNSService, DNSText
from zeroconf._protocol.outgoing import DNSOutgoing

from stapsrv.mdns.interfaces import Address, NetworkLink
from stapsrv.mdns.records import SERVICE_TYPE

if TYPE_CHECKING:
    from zeroconf._transport import _WrappedTransport

_SO_ATTACH_FILTER = 26
_NETWORK_HEADER = 0x100000000 - 0x100000  # SKF_NET_OFF: where the packet's IP header begins
_HOPS = 255
_WHOLE, _NOTHING = 0xFFFFFFFF, 0

_LOAD_BYTE, _SHIFT_RIGHT, _RETURN = 0x30, 0x74, 0x06
_JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST = 0x15, 0x35

_PROGRAM = (
    # Instruction, how many to skip if so, if not, operand.
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
    """Have a datagram socket take no packet that may have come through a router.

    Raises:
        OSError: this kernel knows no filters.
    """
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _PROGRAM)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(_PROGRAM), ctypes.addressof(instructions))
    receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


_PORT = 5353


class LinkwiseZeroconf(Zeroconf):
    """Zeroconf on given links.

    Args:
        links: where to speak; each has an address.
        trouble: called in zeroconf's thread with what went wrong there, which nobody else would hear of.

    Raises:
        OSError: a socket was refused.
        RuntimeError: a link went away meanwhile.
    """

    def __init__(self, links: Sequence[NetworkLink], trouble: Callable[[str], None]) -> None:
        self._links = tuple(links)
        self._yielded: frozenset[str] = frozenset()
        self._limits: dict[str, frozenset[bytes]] = {}
        super().__init__(interfaces=_interfaces(links), ip_version=_protocols(links))
        if self.loop is not None:
            self.loop.set_exception_handler(
                lambda _loop, context: trouble(str(context.get("exception") or context["message"]))
            )

    @property
    def speaks(self) -> bool:
        """Whether any link took multicast."""
        return bool(self.engine.senders)

    def move(self, links: Sequence[NetworkLink]) -> None:
        """Speak on these links from now on; where that is new, say everything there. Takes up to 0.5 s."""
        self._links = tuple(links)
        self.update_interfaces(_interfaces(links), _protocols(links))

    def hear_links_only(self) -> None:
        """Hear nothing from beyond the links; to be said again after each :meth:`move`."""
        for receiver in tuple(self.engine.readers):
            # A kernel without filters (gVisor's) leaves it as it is with everybody else.
            with contextlib.suppress(OSError):
                drop_routed_packets(receiver.sock)

    def yield_host(self, key: str) -> None:
        """Say no more that this host has the name ``key``; at once, whatever services are still there."""
        self._yielded |= {key}

    def keep_host(self, key: str) -> None:
        """Say again that this host has the name ``key``."""
        self._yielded -= {key}

    def limit(self, key: str, addresses: frozenset[bytes] | None) -> None:
        """Speak of the service ``key`` only where all that is announced is among ``addresses``.

        An address of zeros stands for all of its protocol, and None for all of both. A client that heard
        of it elsewhere would knock at an address where nobody listens.
        """
        others = {name: limit for name, limit in self._limits.items() if name != key}
        # A new one: zeroconf's thread may be looking at the old one.
        self._limits = others if addresses is None else {**others, key: addresses}

    def async_leave(self, links: Sequence[NetworkLink]) -> None:
        """Say goodbye where :meth:`move` to ``links`` would leave without a word; in zeroconf's loop.

        Nothing is said there from then on, lest it undo the goodbye.
        """
        staying = {link.index for link in links}
        for sender in self.engine.senders:
            link = self._link_at(sender)
            if link is not None and link.index not in staying:
                for info in self.registry.async_get_service_infos():
                    self.async_send(self.generate_service_broadcast(info, 0), transport=sender)
        self._links = tuple(links)

    def async_send(
        self,
        out: DNSOutgoing,
        addr: str | None = None,
        port: int = _PORT,
        v6_flow_scope: tuple[()] | tuple[int, int] = (),
        transport: _WrappedTransport | None = None,
    ) -> None:
        """Send ``out`` as it reads on each link; called by zeroconf, in its loop, for all that it says."""
        for sender in self.engine.senders if transport is None else [transport]:
            if addr is not None:
                said = self._as_said(out, self._addresses_near(addr, v6_flow_scope))
            elif (link := self._link_at(sender)) is not None:
                said = self._as_said(out, _packed(link.ipv6 if sender.is_ipv6 else link.ipv4))
            else:
                said = None
            if said is not None:
                super().async_send(said, addr, port, v6_flow_scope, sender)

    def _as_said(self, out: DNSOutgoing, addresses: frozenset[bytes]) -> DNSOutgoing | None:
        """Return what of ``out`` is to be said where ``addresses`` are of use; None for nothing."""
        said = DNSOutgoing(out.flags, out.multicast, out.id)
        said.questions = out.questions
        said.authorities = [record for record in out.authorities if _is_useful(record, addresses)]
        if out.is_query():
            # Its answers are those that were heard before, so that nobody says them again.
            said.answers = out.answers
            return said
        said.answers = [answer for answer in out.answers if self._is_sayable(answer[0], addresses)]
        said.additionals = [record for record in out.additionals if self._is_sayable(record, addresses)]
        return said if said.answers else None

    def _is_sayable(self, record: DNSRecord, addresses: frozenset[bytes]) -> bool:
        if isinstance(record, DNSAddress | DNSNsec):
            return record.ttl > 0 and record.key not in self._yielded and _is_useful(record, addresses)
        if record.ttl == 0:
            return True
        if isinstance(record, DNSPointer) and record.key == SERVICE_TYPE:
            return self._is_served(record.alias_key, addresses)
        if isinstance(record, DNSService | DNSText):
            return self._is_served(record.key, addresses)
        return True

    def _is_served(self, key: str, addresses: frozenset[bytes]) -> bool:
        """Whether a service is registered, and listens on all of ``addresses``."""
        limit = self._limits.get(key)
        if limit is None:
            here = True
        else:
            here = bool(addresses) and all(
                not {each, bytes(len(each))}.isdisjoint(limit) for each in addresses
            )
        return here and self.registry.async_get_info_name(key) is not None

    def _link_at(self, sender: _WrappedTransport) -> NetworkLink | None:
        """Return the link on which a sender speaks; None where it is about to be closed."""
        for link in self._links:
            if sender.is_ipv6:
                found = link.index == sender.multicast_index
            else:
                found = ipaddress.ip_address(sender.sock_name[0]) in link.ipv4
            if found:
                return link
        return None

    def _addresses_near(self, peer: str, scope: tuple[()] | tuple[int, int]) -> frozenset[bytes]:
        """Return the addresses to announce to a peer that wants to be answered by itself."""
        address = _plain(ipaddress.ip_address(peer.partition("%")[0]))
        for link in self._links:
            if isinstance(address, ipaddress.IPv4Address):
                if link.reaches(address):
                    return _packed(link.ipv4)
            elif link.index == scope[1] if address.is_link_local and scope else link.reaches(address):
                return _packed(link.ipv6)
        return frozenset()


def _is_useful(record: DNSRecord, addresses: frozenset[bytes]) -> bool:
    return not isinstance(record, DNSAddress) or record.address in addresses


def _interfaces(links: Sequence[NetworkLink]) -> list[str | int | tuple[tuple[str, int, int], int]]:
    """Name the links as zeroconf wants it: by an IPv4 address, and by number for IPv6."""
    ipv4 = [str(link.ipv4[0]) for link in links if link.ipv4]
    return [*ipv4, *(link.index for link in links if link.ipv6)]


def _protocols(links: Sequence[NetworkLink]) -> IPVersion:
    """Return the protocols to listen to; where IPv6 is switched off, not even a socket can be had."""
    if not any(link.ipv6 for link in links):
        return IPVersion.V4Only
    return IPVersion.All if any(link.ipv4 for link in links) else IPVersion.V6Only


def _plain(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _packed(addresses: Iterable[Address]) -> frozenset[bytes]:
    return frozenset(address.packed for address in addresses)
