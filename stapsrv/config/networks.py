"""Addresses and networks in settings: text in, the same text in its usual form out, or what was expected.

Light to import, like :mod:`stapsrv.config.tunables`; what takes time is loaded when there is text to read.
"""

from __future__ import annotations

import errno
import os

from stapsrv.config.quantities import Kind

EVERYBODY = "all"
"""In place of a network: every address."""
NOBODY = "none"
"""In place of a network: no address."""

_MAPPED_PREFIX = 96
"""Of the IPv6 network that stands for IPv4 addresses (RFC 4291, 2.5.5.2)."""


def parse_network(text: str) -> str:
    """Read a network, an address, ``all`` or ``none``; IPv4 mapped into IPv6 becomes IPv4.

    Raises:
        ValueError: none of these; the text is what was expected.
    """
    import ipaddress  # noqa: PLC0415 (see the module's docstring)

    if text in (EVERYBODY, NOBODY):
        return text
    try:
        network = ipaddress.ip_network(text, strict=False)
        exact = ipaddress.ip_interface(text).ip == network.network_address
    except ValueError:
        raise ValueError(
            "a network like 10.0.0.0/8 or 2001:db8::/32, an address, all, or none"
            " (host names are not looked up)"
        ) from None
    if "%" in text:
        bare = ipaddress.IPv6Network((int(network.network_address), network.prefixlen))
        raise ValueError(f"a network without an interface, like {bare}")
    if not exact:
        raise ValueError(f"a network without bits after its prefix, like {network}")
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= _MAPPED_PREFIX:
            return f"{mapped}/{network.prefixlen - _MAPPED_PREFIX}"
    return str(network)


def parse_listen_address(text: str) -> str:
    """Read an address to listen on; IPv4 mapped into IPv6 becomes IPv4.

    Raises:
        ValueError: not such an address; the text is what was expected.
    """
    import ipaddress  # noqa: PLC0415 (see the module's docstring)

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            "an IPv4 or IPv6 address without a port, like 192.0.2.1 or fe80::1%eth0"
            " (host names are not looked up)"
        ) from None
    if address.is_multicast:
        raise ValueError("an address of one host, not of many")
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if address.is_link_local and address.scope_id is None:
            raise ValueError(f"a link-local address with its interface, like {address}%eth0")
    return str(address)


def socket_address(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return what a socket is bound to for an address in its usual form.

    Raises:
        OSError: there is no such interface as the address names (ENODEV).
    """
    import socket  # noqa: PLC0415 (see the module's docstring)

    name, _, zone = address.partition("%")
    if not zone:
        return name, port
    try:
        return name, port, 0, socket.if_nametoindex(zone)
    except OSError as exc:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from exc


NETWORK = Kind("NETWORK", parse_network)
LISTEN_ADDRESS = Kind("ADDRESS", parse_listen_address)
