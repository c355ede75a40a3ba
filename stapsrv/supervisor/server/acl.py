"""Whom a server lets in, by address: networks that are denied, then networks that are allowed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from stapsrv.config.addresses import EVERYBODY, NOBODY

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_EVERY_NETWORK = ("0.0.0.0/0", "::/0")


class NetworkRules:
    """The addresses that may use a server: not those in ``deny``; an empty ``allow`` means all others."""

    def __init__(self, *, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = _networks(tuple(allow) or (EVERYBODY,))
        self._deny = _networks(deny)

    def permit(self, address: str) -> bool:
        """Whether a peer of this address is let in; IPv4 mapped into IPv6 counts as IPv4."""
        peer = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        denied, allowed = (any(peer in each for each in rule) for rule in (self._deny, self._allow))
        return allowed and not denied


def _networks(words: Iterable[str]) -> tuple[_Network, ...]:
    found: list[_Network] = []
    for word in words:
        if word != NOBODY:
            found += map(ipaddress.ip_network, _EVERY_NETWORK if word == EVERYBODY else (word,))
    return tuple(found)
