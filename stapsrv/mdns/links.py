"""The host's links, and on which of them servers are advertised. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import attrs

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""An address and the network that it is in."""


@attrs.frozen(kw_only=True)
class Link:
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

    links: tuple[Link, ...]
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


def _choose(links: Iterable[Link], wanted: Sequence[str]) -> tuple[Link, ...]:
    usable = [link for link in links if link.up and link.addresses]
    if wanted:
        named = {_parse(word) for word in wanted}
        return tuple(narrowed for link in usable if (narrowed := _narrow(link, wanted, named)) is not None)
    shared = [link for link in usable if link.multicast and not (link.loopback or link.point_to_point)]
    return tuple(shared or [link for link in usable if link.loopback])


def _narrow(link: Link, names: Sequence[str], named: set[Address | None]) -> Link | None:
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
