"""The supervisor, its servers, their ports, certificates and listeners."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import anyio
import attrs
from anyio.abc import SocketAttribute

from stapsrv.control.cli.commands.check import find_problems
from stapsrv.control.cli.inventory import FoundServer
from stapsrv.doctor.certificates import dates_of, kept_certificate, trust_of
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, fault, ok, warning
from stapsrv.doctor.probe_client import CONNECT_S, handshake, leave
from stapsrv.errors import ConfigError, IdentityError, ProtocolError
from stapsrv.identity.certificate import serial_pairs
from stapsrv.identity.permissions import refuse_exposed
from stapsrv.supervisor.server.acl import NetworkRules
from stapsrv.supervisor.server.listener import open_listeners

_LISTENING = frozenset({"serving", "draining"})
_BROKEN = (OSError, TimeoutError, ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError, ProtocolError)


async def check_configuration(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Could what is configured be started?"""
    servers, problems = find_problems(patient.invocation, patient.environ)
    for problem in problems:
        yield fault("configured servers", problem)
    if not problems:
        yield ok("configured servers", f"{servers}, no problem")


async def check_supervisor(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Does a supervisor run, and do its servers serve?"""
    for problem in patient.inventory.problems:
        yield failure("supervisor", problem, "look at its log, and restart it")
    own = [info for info in patient.inventory.supervisors if info["user"] == patient.user]
    if not own and not patient.inventory.problems:
        yield warning("supervisor", f"none of user {patient.user} runs", "stap-server start")
    for info in own:
        yield ok(
            "supervisor",
            f"pid {info['pid']}, stapsrv {info['version']}, stap {info['stap_version']}, "
            f"containment: {info['containment']}",
        )
    for lost in patient.inventory.orphaned_servers:
        yield failure(f"server {lost.nickname}", "its supervisor is gone", "stap-server start")
    for found in patient.running:
        yield _state_of(found)


async def check_ports(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Are the ports that are asked for free, or in our hands?"""
    ours = {found.info["port"] for found in patient.running if found.info["state"] in _LISTENING}
    wanted = {(settings.port, settings.reach.listen) for settings in patient.servers if settings.port}
    for port, addresses in sorted(wanted):
        question = f"port {port}"
        if port in ours:
            yield ok(question, "a server of ours listens there")
            continue
        try:
            for listener in open_listeners(port, addresses):
                listener.close()
        except ConfigError as exc:
            if patient.inventory.problems:
                yield warning(question, f"{exc.problem}: by a supervisor that does not answer, perhaps")
                continue
            yield attrs.evolve(
                fault(question, exc),
                remedy=f"{exc.remedy}; or it is one that systemd holds for a server (systemctl list-sockets)",
            )
        else:
            yield ok(question, "is free")


async def check_certificates(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Are the certificates valid, kept safe, and trusted by this user's own client?"""
    for directory in patient.databases:
        try:
            refuse_exposed(directory)
            certificate = kept_certificate(directory)
        except IdentityError as exc:
            yield fault("certificate", exc)
            continue
        if certificate is None:
            yield ok("certificate", f"none in {directory} yet: a server makes one when it starts")
            continue
        yield dates_of(certificate)
        yield await trust_of(
            certificate,
            patient.environ,
            distrust=f"the client of user {patient.user} does not trust it",
            remedy="stap-server cert authorize"
            if directory == patient.own_database
            else f"stap-server cert authorize --ssl {directory}",
        )


async def check_listeners(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Can each server be reached over TLS, and does it show the certificate that is kept?"""
    for found in patient.running:
        port = found.info["port"]
        if found.info["state"] != "serving" or port is None:
            continue
        question = f"TLS on port {port}"
        try:
            yield await _visit(question, port, found, patient)
        except _BROKEN as exc:
            yield failure(
                question,
                f"no handshake with server {found.info['nickname']}: {str(exc) or type(exc).__name__}",
                "look at its log",
            )


def _state_of(found: FoundServer) -> Finding:
    info = found.info
    question = f"server {info['nickname']}"
    if info["state"] == "serving":
        return ok(question, f"serves on port {info['port']}")
    if info["wanted"] == "up":
        reason = f": {info['reason']}" if info["reason"] else ""
        return failure(question, f"is {info['state']}{reason}", "stap-server restart")
    return warning(question, f"is {info['state']}, as it was told")


async def _visit(question: str, port: int, found: FoundServer, patient: DoctorContext) -> Finding:
    settings = found.running.settings
    host = settings.reach.listen[0] if settings.reach.listen else "localhost"
    with anyio.fail_after(CONNECT_S):
        stream = await anyio.connect_tcp(host, port)
    own = str(stream.extra(SocketAttribute.local_address)[0])  # noqa: S610 - anyio's, not a database's
    if not NetworkRules(allow=settings.reach.allow, deny=settings.reach.deny).permit(own):
        await anyio.aclose_forcefully(stream)
        return ok(question, f"it accepts; ALLOW and DENY keep out {own}, so no more can be seen from here")
    async with handshake(stream) as (tls, shown):
        serial = serial_pairs(shown.certificate)
        await leave(tls)
    directory = patient.database_of(settings)
    kept = kept_certificate(directory)
    if kept is not None and serial_pairs(kept) != serial:
        return failure(
            question,
            f"shows certificate {serial}, and {directory} holds {serial_pairs(kept)}",
            "stap-server restart",
        )
    return ok(question, f"{shown.protocol}, certificate {serial}")
