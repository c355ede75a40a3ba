"""Finds the compile servers that the network advertises, with python-zeroconf.

Like :mod:`stapsrv.mdns.responder` it is imported late, and blocks.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Iterator

import attrs
from zeroconf import (
    BadTypeInNameException,
    DNSQuestionType,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
)

from stapsrv.mdns.interfaces import Network
from stapsrv.mdns.records import SERVICE_TYPE, parse_text
from stapsrv.mdns.responder import silence_library, translated
from stapsrv.mdns.zeroconf_per_link import PerLinkZeroconf

# For a service whose answer did not bring its other records.
_RESOLVE_MS = 1000.0
# For all such together: anybody can name thousands that do not exist.
_RESOLVE_ALL_S = 3.0


@attrs.frozen(kw_only=True)
class FoundServer:
    """One service as received; every text is whatever its host chose to send."""

    name: str
    # Such as ``build.local``.
    host: str
    # IPv4 first; a link-local one has its interface after a ``%``.
    addresses: tuple[str, ...]
    port: int
    release: str
    arch: str
    version: str
    # Of the certificate, hex pairs joined by ``:``.
    serial: str
    options: str
    moks: tuple[str, ...]


def find_servers(network: Network, wait_s: float) -> list[FoundServer]:
    """Return the servers that are there after ``wait_s`` seconds on the links, sorted by name; blocks.

    Servers answer within 0.2 s, or 1.2 s if somebody asked just before.

    Raises:
        AdvertiseError: multicast DNS is refused.
    """
    silence_library()
    names: set[str] = set()

    def on_change(name: str, state_change: ServiceStateChange, **_: object) -> None:
        if state_change is ServiceStateChange.Added:
            names.add(name)
        elif state_change is ServiceStateChange.Removed:
            names.discard(name)

    with translated(), contextlib.closing(PerLinkZeroconf(network.links, lambda _error: None)) as zeroconf:
        # Without asking for unicast answers: only one of the programs that share the port would receive them.
        ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[on_change], question_type=DNSQuestionType.QM)
        threading.Event().wait(wait_s)
        found = list(_resolve(zeroconf, names))
    return sorted(map(_found, found), key=lambda server: server.name)


def _resolve(zeroconf: Zeroconf, names: Iterable[str]) -> Iterator[ServiceInfo]:
    """Yield the services of these names whose records are cached, or arrive in time when asked for."""
    deadline = time.monotonic() + _RESOLVE_ALL_S
    for name in tuple(names):
        try:
            info = ServiceInfo(SERVICE_TYPE, name)
        except BadTypeInNameException:
            # Somebody lists a service of another type among the compile servers.
            continue
        left_ms = min((deadline - time.monotonic()) * 1000, _RESOLVE_MS)
        if info.load_from_cache(zeroconf) or (left_ms > 0 and info.request(zeroconf, left_ms)):
            yield info


def _found(info: ServiceInfo) -> FoundServer:
    text = parse_text(info.text)
    first = {key: values[0] for key, values in text.items()}
    release, _, arch = first.get("sysinfo", "").partition(" ")
    return FoundServer(
        name=info.get_name(),
        host=(info.server or "").rstrip("."),
        addresses=tuple(_with_interface_name(address) for address in info.parsed_scoped_addresses()),
        port=info.port or 0,
        release=release,
        arch=arch,
        version=first.get("version", ""),
        serial=first.get("certinfo", ""),
        options=first.get("optinfo", ""),
        moks=tuple(text.get("mok_info", ())),
    )


def _with_interface_name(text: str) -> str:
    address, _, index = text.partition("%")
    if index.isdigit():
        with contextlib.suppress(OSError):
            return f"{address}%{socket.if_indextoname(int(index))}"
    return text
