"""Finds compile servers by multicast DNS, with python-zeroconf, and those of them that suit.

It is imported late, needs the extra ``discover``, and blocks. Source: PROTOCOL, mDNS.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterable, Sequence

import attrs

from stapsrv.client.address import Address
from stapsrv.client.errors import ClientError

LISTEN_S = 2.0
"""Servers answer within 0.2 s, or 1.2 s if somebody asked just before."""

_SERVICE_TYPE = "_stap._tcp.local."
# For a service whose answer did not bring its other records, and for how many at most: anybody can name
# thousands.
_RESOLVE_MS = 500.0
_MOST = 100


@attrs.frozen(kw_only=True)
class FoundServer:
    """One kernel release of a server as its host advertises it; every text is whatever that chose to send."""

    name: str
    addresses: tuple[Address, ...]
    release: str
    arch: str
    version: str
    # Of its certificate; None if it says none.
    serial: int | None


def find_servers(wait_s: float = LISTEN_S, *, interfaces: Sequence[str] | None = None) -> list[FoundServer]:
    """Return the servers that answer within ``wait_s`` seconds, sorted by name.

    ``interfaces`` are the addresses of those to ask on, by default all that have one.

    Raises:
        ClientError: zeroconf is not installed, or the network cannot be asked.
    """
    try:
        from zeroconf import InterfaceChoice, ServiceBrowser, ServiceInfo, Zeroconf  # noqa: PLC0415
    except ImportError as exc:
        raise ClientError(
            "servers cannot be looked for without zeroconf",
            remedy="install it: pip install 'stapsrv-client[discover]', or name a server with --server",
        ) from exc
    names: list[str] = []

    def on_change(name: str, **_: object) -> None:
        if name not in names and len(names) < _MOST:
            names.append(name)

    try:
        with contextlib.closing(
            Zeroconf(list(interfaces) if interfaces else InterfaceChoice.All)
        ) as zeroconf:
            ServiceBrowser(zeroconf, _SERVICE_TYPE, handlers=[on_change])
            threading.Event().wait(wait_s)
            found = []
            for name in sorted(names):
                info = ServiceInfo(_SERVICE_TYPE, name)
                if info.load_from_cache(zeroconf) or info.request(zeroconf, _RESOLVE_MS):
                    addresses = info.parsed_scoped_addresses()
                    found.append(_found(info.get_name(), addresses, info.port or 0, info.properties))
    except (OSError, RuntimeError) as exc:
        raise ClientError(
            f"the network cannot be asked for servers ({exc})", remedy="name one with --server"
        ) from exc
    return found


def suitable(
    servers: Iterable[FoundServer], *, release: str, arch: str, serials: Collection[int] = ()
) -> list[FoundServer]:
    """Return the servers that the real client would use: for this release and architecture, and trusted.

    ``serials`` are those of the trusted certificates; without any, a handshake has to show who is trusted.
    """
    return [
        server
        for server in servers
        if (server.release, server.arch) == (release, arch)
        and server.addresses
        and (not serials or server.serial in serials)
    ]


def _found(
    name: str, addresses: Sequence[str], port: int, properties: dict[bytes, bytes | None]
) -> FoundServer:
    text = {key: (value or b"").decode("utf-8", "replace") for key, value in properties.items()}
    release, _, arch = text.get(b"sysinfo", "").partition(" ")
    pairs = text.get(b"certinfo", "").replace(":", "")
    serial = None
    with contextlib.suppress(ValueError):
        serial = int(pairs, 16)
    return FoundServer(
        name=name,
        addresses=tuple(Address(address, port) for address in addresses if port),
        release=release,
        arch=arch,
        version=text.get(b"version", ""),
        serial=serial,
    )
