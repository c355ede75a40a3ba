"""Checks of the supervisor and its servers: configuration, ports, certificates, listeners, announcements."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import anyio.to_thread
import attrs
from anyio.abc import SocketAttribute

from stapsrv.control.cli.commands.check import find_problems
from stapsrv.control.cli.inventory import FoundServer
from stapsrv.doctor.certificates import check_dates, check_trust, saved_certificate
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, error, failure, ok, warning
from stapsrv.doctor.probe_client import CONNECT_S, finish, handshake
from stapsrv.errors import ConfigError, IdentityError, ProtocolError
from stapsrv.identity.certificate import serial_pairs
from stapsrv.identity.permissions import refuse_exposed
from stapsrv.supervisor.server.admission import NetworkRules
from stapsrv.supervisor.server.listener import open_listeners

if TYPE_CHECKING:
    from stapsrv.mdns.browser import FoundServer as DiscoveredServer

_DISCOVERY_S = 2.0
_LISTENING = frozenset({"serving", "draining"})
_BROKEN = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, ProtocolError)


async def check_configuration(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that the configured servers can be started."""
    servers, problems, warnings = find_problems(context.invocation, context.environ)
    for problem in problems:
        yield error("configured servers", problem)
    if not problems:
        yield ok("configured servers", f"{servers}, no problem")
    for line in warnings:
        yield warning("configured servers", line, "change the line")


async def check_supervisor(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that a supervisor runs, and that its servers serve."""
    for problem in context.inventory.problems:
        yield failure("supervisor", problem, "look at its log, and restart it")
    own = [info for info in context.inventory.supervisors if info["user"] == context.user]
    if not own and not context.inventory.problems:
        yield warning("supervisor", f"none of user {context.user} runs", "stap-server start")
    for info in own:
        yield ok(
            "supervisor",
            f"pid {info['pid']}, stapsrv {info['version']}, stap {info['stap_version']}, "
            f"containment: {info['containment']}",
        )
    for orphan in context.inventory.orphaned_servers:
        yield failure(f"server {orphan.nickname}", "its supervisor is gone", "stap-server start")
    for found in context.running:
        yield _check_state(found)


async def check_ports(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that the configured ports are free, or used by these servers."""
    ours = {found.info["port"] for found in context.running if found.info["state"] in _LISTENING}
    wanted = {(settings.port, settings.access.listen) for settings in context.servers if settings.port}
    for port, addresses in sorted(wanted):
        question = f"port {port}"
        if port in ours:
            yield ok(question, "a server of ours listens there")
            continue
        try:
            for listener in open_listeners(port, addresses):
                listener.close()
        except ConfigError as exc:
            if context.inventory.problems:
                yield warning(question, f"{exc.problem}: by a supervisor that does not answer, perhaps")
                continue
            yield attrs.evolve(
                error(question, exc),
                remedy=f"{exc.remedy}; or it is one that systemd holds for a server (systemctl list-sockets)",
            )
        else:
            yield ok(question, "is free")


async def check_certificates(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that certificates are valid, their keys private, and that this user's client trusts them."""
    for directory in context.databases:
        try:
            # A start mends the rest.
            refuse_exposed(directory, once_tightened=True)
            certificate = saved_certificate(directory)
        except IdentityError as exc:
            yield error("certificate", exc)
            continue
        if certificate is None:
            yield ok("certificate", f"none in {directory} yet: a server makes one when it starts")
            continue
        yield check_dates(certificate)
        yield await check_trust(
            certificate,
            context.environ,
            distrust=f"the client of user {context.user} does not trust it",
            remedy="stap-server cert authorize"
            if directory == context.own_database
            else f"stap-server cert authorize --ssl {directory}",
        )


async def check_listeners(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that each server can be reached over TLS, and shows the certificate in its database."""
    for found in context.serving:
        port = found.info["port"]
        if port is None:
            continue
        question = f"TLS on port {port}"
        try:
            yield await _check_listener(question, port, found, context)
        except _BROKEN as exc:
            yield failure(
                question,
                f"no handshake with server {found.info['nickname']}: {str(exc) or type(exc).__name__}",
                "look at its log",
            )


async def check_announcements(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that each server that serves is announced by multicast DNS."""
    question = "announced (mDNS)"
    if context.settings.mdns_enabled is False:
        yield ok(question, "is off: clients need HOST:PORT")
        return
    if not context.serving:
        yield ok(question, "nothing to announce: no server serves")
        return
    # Not in the event loop's thread: zeroconf would use that loop, and receive nothing.
    discovered = await anyio.to_thread.run_sync(_discover, context.settings.mdns_interfaces or ())
    if discovered is None:
        yield warning(question, "no network interface is up and has an address")
        return
    for found in sorted(context.serving, key=lambda found: found.info["nickname"]):
        yield _announcement(question, found, discovered, context)


def _check_state(found: FoundServer) -> Finding:
    info = found.info
    question = f"server {info['nickname']}"
    if info["state"] == "serving":
        return ok(question, f"serves on port {info['port']}")
    if info["wanted"] == "up":
        reason = f": {info['reason']}" if info["reason"] else ""
        return failure(question, f"is {info['state']}{reason}", "stap-server restart")
    return warning(question, f"is {info['state']}, as requested")


async def _check_listener(question: str, port: int, found: FoundServer, context: DoctorContext) -> Finding:
    settings = found.settings
    host = settings.access.listen[0] if settings.access.listen else "localhost"
    with anyio.fail_after(CONNECT_S):
        stream = await anyio.connect_tcp(host, port)
    # A server closes a connection from an address that it denies without a handshake.
    own = str(stream.extra(SocketAttribute.local_address)[0])  # noqa: S610 - anyio's, not a database's
    if not NetworkRules(settings.access).permit(own):
        await anyio.aclose_forcefully(stream)
        return ok(
            question, f"it accepts; ALLOW and DENY keep out {own}, so nothing more can be checked from here"
        )
    async with handshake(stream) as (tls, tls_info):
        serial = serial_pairs(tls_info.certificate)
        await finish(tls)
    directory = context.database_of(settings)
    saved = saved_certificate(directory)
    if saved is not None and serial_pairs(saved) != serial:
        return failure(
            question,
            f"shows certificate {serial}, and {directory} holds {serial_pairs(saved)}",
            "stap-server restart",
        )
    return ok(question, f"{tls_info.protocol}, certificate {serial}")


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
        f"server {nickname} on port {port} was not found within {_DISCOVERY_S:g} s",
        "see what its log says about advertising, and whether stap-serverd runs with --no-mdns; "
        "let UDP port 5353 pass the firewall",
    )


def _discover(interfaces: tuple[str, ...]) -> Sequence[DiscoveredServer] | None:
    """Return the servers that announce themselves; None where there is no network."""
    # Imported late: on most hosts this check is not needed.
    from stapsrv.mdns.browser import find_servers  # noqa: PLC0415
    from stapsrv.mdns.interfaces import read_network  # noqa: PLC0415

    network = read_network().select(interfaces)
    return find_servers(network, _DISCOVERY_S) if network.links else None
