"""Addresses, networks, interfaces and host names in settings.

Each ``parse_`` function reads text and returns its usual form; the text of its ValueError says what was
expected.
Light to import: a plain ``status`` loads the table, but seldom has an address to read.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import NamedTuple

# In place of a network: every address, and no address.
EVERYBODY, NOBODY = "all", "none"
LOOPBACK = "127.0.0.1"

_MAPPED_PREFIX = 96  # of the IPv6 network that stands for IPv4 addresses (RFC 4291, 2.5.5.2)
_HIGHEST_PORT = 65_535
_INTERFACE_CHARACTERS = 15  # IFNAMSIZ without its NUL
_LABEL_CHARACTERS = 63
_METRICS_MEANING = (
    "off, unix:PATH, PORT, ADDRESS:PORT or [ADDRESS]:PORT, with an IP address and a port up to 65535 "
    "(127.0.0.1 where there is no address)"
)
_METRICS_TCP = re.compile(
    r"(?:(?P<name>localhost)?:|(?P<v4>[0-9.]+):|\[(?P<v6>[0-9a-fA-F:.]+)\]:)?(?P<port>[0-9]{1,5})"
)
_UNIX = "unix:"
_FARM = re.compile(
    r"(?P<scheme>tls|tcp)://(?:(?P<host>[\w.-]+)|\[(?P<v6>[0-9a-fA-F:.]+)\]):(?P<port>[0-9]{1,5})"
)
_FARM_MEANING = "tls://HOST:PORT, with an IPv6 address in brackets and a port up to 65535"


def parse_network(text: str) -> str:
    """Read a network, an address, ``all`` or ``none``; IPv4 mapped into IPv6 becomes IPv4."""
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
    """Read an address to listen on; IPv4 mapped into IPv6 becomes IPv4."""
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
    """Return what to bind a socket to for an address in its usual form.

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


class MetricsAddress(NamedTuple):
    """The address of metrics and health: a Unix socket, or an IP address and port; none by default.

    Port 0 is one that the kernel picks; a relative path lies in the supervisor's own directory.
    """

    host: str | None = None
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"{_UNIX}{self.path}"
        if self.host is None:
            return "off"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


OFF = MetricsAddress()


def parse_metrics_address(text: str) -> MetricsAddress:
    """Read an address for metrics; one without a host is on the loopback interface."""
    if text.lower() in {"off", "no"}:
        return OFF
    if text.startswith(_UNIX) and text != _UNIX:
        return MetricsAddress(path=Path(text.removeprefix(_UNIX)))
    found = _METRICS_TCP.fullmatch(text)
    if found is None or int(found["port"]) > _HIGHEST_PORT:
        raise ValueError(_METRICS_MEANING)
    host = found["v4"] or found["v6"] or LOOPBACK
    if not is_address(host):
        raise ValueError(_METRICS_MEANING)
    return MetricsAddress(host=host, port=int(found["port"]))


class FarmAddress(NamedTuple):
    """The address of a farm's scheduler: by TLS, or by plain TCP on the loopback interface alone."""

    is_encrypted: bool
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tls' if self.is_encrypted else 'tcp'}://{host}:{self.port}"


def parse_farm_address(text: str) -> FarmAddress:
    """Read the address of a farm's scheduler; plain TCP has to be written out, for a loopback address."""
    found = _FARM.fullmatch(text)
    if found is None or int(found["port"]) > _HIGHEST_PORT or (found["v6"] and not is_address(found["v6"])):
        raise ValueError(_FARM_MEANING)
    address = FarmAddress(found["scheme"] == "tls", found["host"] or found["v6"], int(found["port"]))
    if not address.is_encrypted and not _is_loopback(address.host):
        raise ValueError(
            "tls://HOST:PORT, since tcp:// without TLS is for this host alone, as in tcp://127.0.0.1:8786"
        )
    return address


def parse_interfaces(text: str) -> tuple[str, ...]:
    """Read names of interfaces and addresses, with commas or blanks between them; they need not exist."""
    words = tuple(dict.fromkeys(text.replace(",", " ").split()))
    for word in words:
        if not (_is_interface_name(word) or is_address(word)):
            raise ValueError(f"names of interfaces or IP addresses, which {word!r} is not")
    if not words:
        raise ValueError("at least one name of an interface or IP address")
    return words


def parse_host(text: str) -> str:
    """Read a host name of one label, with or without ``.local``."""
    label = text.removesuffix(".").removesuffix(".local")
    inner = label.replace("-", "")
    if (
        not (inner.isascii() and inner.isalnum())
        or label.strip("-") != label
        or len(label) > _LABEL_CHARACTERS
    ):
        raise ValueError("a host name of up to 63 letters, digits and dashes, without a domain")
    return label


def is_address(text: str) -> bool:
    """Whether ``text`` is an IP address."""
    import ipaddress  # noqa: PLC0415 (see the module's docstring)

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    import ipaddress  # noqa: PLC0415 (see the module's docstring)

    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_interface_name(word: str) -> bool:
    # A colon would make an alias, which is no interface.
    return len(word) <= _INTERFACE_CHARACTERS and not {"/", ":"} & {*word} and word not in {".", ".."}
