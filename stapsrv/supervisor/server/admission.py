"""Admits connections: by address, and by their number over all servers, to one, and from one client.

Pure. What counts as one client is :func:`client_of` an address: connections from it share one bound, and one
place in the turns of the queue.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import attrs

from stapsrv.config.addresses import EVERYBODY, NOBODY
from stapsrv.config.table import Limits, NetworkAccess
from stapsrv.rejection import RejectReason

# A host that has one IPv6 address has 2**64 of them (RFC 6177, RFC 7421).
_CLIENT_PREFIX = 64

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_EVERY_NETWORK = ("0.0.0.0/0", "::/0")


class NetworkRules:
    """The addresses that may use a server: not those that it denies; without any allowed, all others."""

    def __init__(self, access: NetworkAccess) -> None:
        self._allow = _networks(access.allow or (EVERYBODY,))
        self._deny = _networks(access.deny)

    def permit(self, address: str) -> bool:
        """Whether a peer of this address is let in; IPv4 mapped into IPv6 counts as IPv4."""
        peer = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        denied, allowed = (any(peer in each for each in rule) for rule in (self._deny, self._allow))
        return allowed and not denied


class Rejection(NamedTuple):
    """Why a connection is not let in: the bound, and the reason in words."""

    reject_reason: RejectReason
    reason: str


def client_of(address: str) -> str:
    """Return the client behind an address: an IPv6 network of 64 bits, or a link-local or IPv4 address."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address) or parsed.is_link_local:
        return address
    return str(ipaddress.IPv6Network((int(parsed), _CLIENT_PREFIX), strict=False))


@attrs.define
class ConnectionBudget:
    """The connections of all servers of a process: how many may be open, and are."""

    most: int
    open: int = 0


class Admission:
    """Counts the connections of one server, and those of all in ``budget``."""

    def __init__(self, budget: ConnectionBudget) -> None:
        self._budget = budget
        self._by_client: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Connections that are open."""
        return self._by_client.total()

    def check(self, client: str, limits: Limits) -> Rejection | None:
        """Return why a connection of ``client`` is not let in, or None where it is."""
        if self.open >= limits.connections:
            return Rejection(RejectReason.CONNECTIONS, f"{limits.connections} connections are open already")
        if self._by_client[client] >= limits.connections_per_address:
            reason = f"{limits.connections_per_address} connections from {client} are open already"
            return Rejection(RejectReason.ADDRESS_CONNECTIONS, reason)
        if self._budget.open >= self._budget.most:
            reason = f"{self._budget.most} connections to all servers are open already"
            return Rejection(RejectReason.TOTAL_CONNECTIONS, reason)
        return None

    def enter(self, client: str) -> None:
        """Count a connection that begins."""
        self._by_client[client] += 1
        self._budget.open += 1

    def leave(self, client: str) -> None:
        """Count a connection that ends."""
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]
        self._budget.open -= 1


def _networks(words: Iterable[str]) -> tuple[_Network, ...]:
    found: list[_Network] = []
    for word in words:
        if word != NOBODY:
            found += map(ipaddress.ip_network, _EVERY_NETWORK if word == EVERYBODY else (word,))
    return tuple(found)
