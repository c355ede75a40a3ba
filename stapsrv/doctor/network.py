"""Do others on the network hear of the servers?"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import anyio.to_thread

from stapsrv.control.cli.inventory import FoundServer
from stapsrv.doctor.certificates import kept_certificate
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, ok, warning
from stapsrv.identity.certificate import serial_pairs

if TYPE_CHECKING:
    from stapsrv.mdns.browser import FoundServer as Heard

_LISTEN_S = 2.0


async def check_announcements(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Is each server that serves announced by multicast DNS?"""
    question = "announced (mDNS)"
    mdns = patient.settings.mdns
    if not mdns.is_enabled:
        yield ok(question, "is off: clients have to be told HOST:PORT")
        return
    serving = [found for found in patient.running if found.info["state"] == "serving"]
    if not serving:
        yield ok(question, "nothing to announce: no server serves")
        return
    # Never on an event loop's own thread: zeroconf would take that loop for its own, and hear nothing.
    heard = await anyio.to_thread.run_sync(_listen, mdns.interfaces or ())
    if heard is None:
        yield warning(question, "no network interface is up and has an address")
        return
    for found in sorted(serving, key=lambda found: found.info["nickname"]):
        yield _announcement(question, found, heard, patient)


def _announcement(
    question: str, found: FoundServer, heard: Sequence[Heard], patient: DoctorContext
) -> Finding:
    """Return whether a server is among those that were heard of: by its port and its certificate."""
    nickname, port, settings = found.info["nickname"], found.info["port"], found.running.settings
    listen = [ipaddress.ip_address(address.partition("%")[0]) for address in settings.reach.listen]
    if listen and all(address.is_loopback for address in listen):
        return ok(question, f"server {nickname} listens for this host alone, and others are not told")
    certificate = kept_certificate(patient.database_of(settings))
    serial = None if certificate is None else serial_pairs(certificate)
    names = {other.name for other in heard if other.port == port and serial in {None, other.serial}}
    if names:
        return ok(question, f"server {nickname}: {', '.join(sorted(names))}")
    return failure(
        question,
        f"server {nickname} on port {port} was not heard of within {_LISTEN_S:g} s",
        "see what its log says of services and of advertising, and whether stap-serverd was told --no-mdns; "
        "let UDP port 5353 pass the firewall",
    )


def _listen(interfaces: tuple[str, ...]) -> Sequence[Heard] | None:
    """Return the services on this network; None where there is no network."""
    # Late: most examinations are of hosts where this is off, or end before it.
    from stapsrv.mdns.browser import find_servers  # noqa: PLC0415
    from stapsrv.mdns.interfaces import read_network  # noqa: PLC0415

    network = read_network().choose(interfaces)
    return find_servers(network, _LISTEN_S) if network.links else None
