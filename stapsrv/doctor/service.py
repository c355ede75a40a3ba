"""The supervisor, its servers, their ports, certificates and listeners."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
from cryptography import x509

from stapsrv.config.settings import ServerSettings
from stapsrv.control.check import find_problems
from stapsrv.control.scene import FoundServer
from stapsrv.doctor.dialogue import CONNECT_S, handshake
from stapsrv.doctor.findings import Finding, failure, fault, ok, warning
from stapsrv.doctor.patient import Patient
from stapsrv.errors import ConfigError, IdentityError, ProtocolError
from stapsrv.identity.certificate import CERTIFICATE_FILE, serial_pairs
from stapsrv.identity.permissions import refuse_exposed
from stapsrv.identity.trust import ALL_CLIENTS, default_client_directory, is_trusted
from stapsrv.supervisor.listener import open_listener

_RENEWAL = timedelta(days=30)
"""A server renews its certificate that long before it expires."""
_BROKEN = (OSError, TimeoutError, ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError, ProtocolError)


async def check_configuration(patient: Patient) -> AsyncIterator[Finding]:
    """Could what is configured be started?"""
    servers, problems = find_problems(patient.invocation, patient.environ)
    for problem in problems:
        yield fault("configured servers", problem)
    if not problems:
        yield ok("configured servers", f"{servers}, no problem")


async def check_supervisor(patient: Patient) -> AsyncIterator[Finding]:
    """Does a supervisor run, and do its servers serve?"""
    for problem in patient.scene.problems:
        yield failure("supervisor", problem, "look at its log, and restart it")
    own = [info for info in patient.scene.supervisors if info["user"] == patient.user]
    if not own and not patient.scene.problems:
        yield warning("supervisor", f"none of user {patient.user} runs", "stap-server start")
    for info in own:
        yield ok(
            "supervisor",
            f"pid {info['pid']}, stapsrv {info['version']}, stap {info['stap_version']}, "
            f"containment: {info['containment']}",
        )
    for lost in patient.scene.lost_servers:
        yield failure(f"server {lost.nickname}", "its supervisor is gone", "stap-server start")
    for found in patient.running:
        yield _state_of(found)


async def check_ports(patient: Patient) -> AsyncIterator[Finding]:
    """Are the ports that are asked for free, or in our hands?"""
    ours = {found.info["port"] for found in patient.running}
    wanted = {settings.port for settings in patient.servers if settings.port}
    for port in sorted(wanted):
        question = f"port {port}"
        if port in ours:
            yield ok(question, "a server of ours listens there")
            continue
        try:
            open_listener(port).close()
        except ConfigError as exc:
            yield fault(question, exc)
        else:
            yield ok(question, "is free")


async def check_certificates(patient: Patient) -> AsyncIterator[Finding]:
    """Are the certificates valid, kept safe, and trusted by this user's own client?"""
    for directory in patient.databases:
        try:
            refuse_exposed(directory)
            certificate = _read(directory)
        except IdentityError as exc:
            yield fault("certificate", exc)
            continue
        if certificate is None:
            yield ok("certificate", f"none in {directory} yet: a server makes one when it starts")
            continue
        yield dates_of(certificate)
        yield await trust_of(certificate, patient)


async def check_listeners(patient: Patient) -> AsyncIterator[Finding]:
    """Can each server be reached over TLS, and does it show the certificate that is kept?"""
    for found in patient.running:
        port = found.info["port"]
        if found.info["state"] != "serving" or port is None:
            continue
        question = f"TLS on port {port}"
        try:
            yield await _visit(question, port, found.running.settings, patient)
        except _BROKEN as exc:
            yield failure(
                question,
                f"no handshake with server {found.info['nickname']}: {str(exc) or type(exc).__name__}",
                "look at its log",
            )


def dates_of(certificate: x509.Certificate) -> Finding:
    """Return whether a certificate is valid now, and for how long."""
    now = datetime.now(UTC)
    until = certificate.not_valid_after_utc
    said = f"serial {serial_pairs(certificate)}, valid until {until:%Y-%m-%d}"
    if now < certificate.not_valid_before_utc:
        begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return failure("certificate", f"is not valid before {begins}", "set the clock, or renew it")
    if now > until:
        return failure("certificate", f"has expired on {until:%Y-%m-%d %H:%M} UTC", "stap-server cert renew")
    if until - now < _RENEWAL:
        return warning(
            "certificate",
            f"{said}, less than a month",
            "a running server renews it by itself; else start one",
        )
    return ok("certificate", said)


async def trust_of(certificate: x509.Certificate, patient: Patient) -> Finding:
    """Return whether the user's own client trusts a certificate."""
    for place in (default_client_directory(patient.environ), ALL_CLIENTS):
        try:
            if await is_trusted(certificate, place):
                return ok("trust", f"{place} trusts it")
        except IdentityError as exc:
            return fault("trust", exc)
    return failure(
        "trust", f"the client of user {patient.user} does not trust it", "stap-server cert authorize"
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


async def _visit(question: str, port: int, settings: ServerSettings, patient: Patient) -> Finding:
    with anyio.fail_after(CONNECT_S):
        stream = await anyio.connect_tcp("localhost", port)
    async with handshake(stream) as (_tls, shown):
        serial = serial_pairs(shown.certificate)
    directory = settings.ssl or patient.databases[0]
    kept = _read(directory)
    if kept is not None and serial_pairs(kept) != serial:
        return failure(
            question,
            f"shows certificate {serial}, and {directory} holds {serial_pairs(kept)}",
            "stap-server restart",
        )
    return ok(question, f"{shown.protocol}, certificate {serial}")


def _read(directory: Path) -> x509.Certificate | None:
    """Return the certificate beside a database, as clients are given it; None if there is none."""
    file = directory / CERTIFICATE_FILE
    try:
        return x509.load_der_x509_certificate(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise IdentityError(f"cannot be read ({exc})", where=str(file)) from exc
