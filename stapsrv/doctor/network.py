"""The check that servers are announced on the network."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import anyio.to_thread

from stapsrv.control.cli.inventory import FoundServer
from stapsrv.doctor.certificates import saved_certificate
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, ok, warning
from stapsrv.identity.certificate import serial_pairs

if TYPE_CHECKING:
    from stapsrv.mdns.browser import FoundServer as DiscoveredServer

_LISTEN_S = 2.0


async def check_announcements(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that each server that serves is announced by multicast DNS."""
    question = "announced (mDNS)"
    if context.settings.mdns_enabled is False:
        yield ok(question, "is off: clients need HOST:PORT")
        return
    serving = [found for found in context.running if found.info["state"] == "serving"]
    if not serving:
        yield ok(question, "nothing to announce: no server serves")
        return
    # Not in the event loop's thread: zeroconf would use that loop, and receive nothing.
    discovered = await anyio.to_thread.run_sync(_discover, context.settings.mdns_interfaces or ())
    if discovered is None:
        yield warning(question, "no network interface is up and has an address")
        return
    for found in sorted(serving, key=lambda found: found.info["nickname"]):
        yield _announcement(question, found, discovered, context)


def _announcement(
    question: str, found: FoundServer, discovered: Sequence[DiscoveredServer], context: DoctorContext
) -> Finding:
    # By port and certificate, since another host's server may have the same port.
    nickname, port, settings = found.info["nickname"], found.info["port"], found.settings
    listen = [ipaddress.ip_address(address.partition("%")[0]) for address in settings.access.listen]
    if listen and all(address.is_loopback for address in listen):
        return ok(question, f"server {nickname} listens on loopback only, and is not announced")
    certificate = saved_certificate(context.database_of(settings))
    serial = None if certificate is None else serial_pairs(certificate)
    names = {other.name for other in discovered if other.port == port and serial in {None, other.serial}}
    if names:
        return ok(question, f"server {nickname}: {', '.join(sorted(names))}")
    return failure(
        question,
        f"server {nickname} on port {port} was not found within {_LISTEN_S:g} s",
        "see what its log says about advertising, and whether stap-serverd runs with --no-mdns; "
        "let UDP port 5353 pass the firewall",
    )


def _discover(interfaces: tuple[str, ...]) -> Sequence[DiscoveredServer] | None:
    """Return the servers that announce themselves; None where there is no network."""
    # Imported late: on most hosts this check is not needed.
    from stapsrv.mdns.browser import find_servers  # noqa: PLC0415
    from stapsrv.mdns.interfaces import read_network  # noqa: PLC0415

    network = read_network().select(interfaces)
    return find_servers(network, _LISTEN_S) if network.links else None
