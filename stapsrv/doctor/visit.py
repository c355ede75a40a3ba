"""A client's way to a server elsewhere, step by step, and where it ends."""

from __future__ import annotations

import ipaddress
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Mapping

import anyio
import attrs
from anyio.abc import SocketStream
from cryptography import x509
from cryptography.x509.oid import NameOID

from stapsrv.compile.translator import find_stap
from stapsrv.doctor.dialogue import CONNECT_S, Said, ask, handshake
from stapsrv.doctor.findings import Finding, failure, fault, ok, warning
from stapsrv.doctor.service import dates_of
from stapsrv.errors import IdentityError, ProtocolError, StapsrvError
from stapsrv.identity.trust import ALL_CLIENTS, default_client_directory, is_trusted

_PROBE = (b"-p1", b"-e", b"probe begin { exit() }")
"""The first pass reads the script and no more: it costs the server a fraction of a second."""
_BROKEN = (TimeoutError, ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError)


@attrs.frozen
class Destination:
    """Where a client goes.

    Attributes:
        host: a name or an address.
        port: the server's port.
        release: the kernel to compile for.
    """

    host: str
    port: int
    release: str

    @property
    def address(self) -> str:
        """As ``stap --use-server`` takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def walk(destination: Destination, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Go to a server as a client of this user would; ends where no client gets further."""
    addresses = await _addresses(destination)
    if not addresses:
        yield failure("address", f"{destination.host} has none", "check the name, or give an address")
        return
    yield ok("address", ", ".join(addresses))
    try:
        with anyio.fail_after(CONNECT_S):
            stream = await anyio.connect_tcp(destination.host, destination.port)
    except (OSError, TimeoutError) as exc:
        yield failure(
            "connection",
            f"{destination.address}: {_reason(exc)}",
            "see on that host whether the server runs (stap-server status), and what its firewall lets pass",
        )
        return
    yield ok("connection", destination.address)
    try:
        async for finding in _converse(stream, destination, environ):
            yield finding
    except _BROKEN as exc:
        yield failure(
            "conversation",
            f"the server ends it: {_reason(exc)}",
            "it is full, drains, denies this host's address, or is no compile server; see its log",
        )
    except ProtocolError as exc:
        yield fault("conversation", exc)


async def _converse(
    stream: SocketStream, destination: Destination, environ: Mapping[str, str]
) -> AsyncIterator[Finding]:
    async with handshake(stream) as (tls, shown):
        yield ok("TLS", f"{shown.protocol}, {shown.cipher}")
        yield dates_of(shown.certificate)
        yield _names(shown.certificate, destination)
        yield await _trust(shown.certificate, destination, environ)
        said = await ask(tls, destination.release, os.uname().machine, _PROBE)
    yield _release(said, destination)
    yield await _version(said, environ)


async def _addresses(destination: Destination) -> list[str]:
    try:
        with anyio.fail_after(CONNECT_S):
            found = await anyio.getaddrinfo(destination.host, destination.port)
    except (OSError, TimeoutError, UnicodeError):
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _names(certificate: x509.Certificate, destination: Destination) -> Finding:
    """Return whether the certificate is for the host that was asked for; clients only remark if not."""
    names = _names_in(certificate)
    if _is_address(destination.host) or destination.host.lower().rstrip(".") in names:
        return ok("host name", ", ".join(sorted(names)) or "the certificate has none")
    return warning(
        "host name",
        f"the certificate is for {', '.join(sorted(names)) or 'nobody'}, not for {destination.host}",
        "go by one of its names, or let stap-gen-cert make one with this name too",
    )


def _names_in(certificate: x509.Certificate) -> set[str]:
    names = {
        str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    }
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return {name.lower() for name in names}
    return {name.lower() for name in names | set(extension.value.get_values_for_type(x509.DNSName))}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _trust(
    certificate: x509.Certificate, destination: Destination, environ: Mapping[str, str]
) -> Finding:
    for place in (default_client_directory(environ), ALL_CLIENTS):
        try:
            if await is_trusted(certificate, place):
                return ok("trust", f"{place} trusts it")
        except IdentityError as exc:
            return fault("trust", exc)
    return failure(
        "trust",
        "your client does not trust this server's certificate",
        f"stap --trust-servers=ssl --use-server={destination.address}",
    )


def _release(said: Said, destination: Destination) -> Finding:
    question = f"kernel {destination.release}"
    if said.rc == 0:
        return ok(question, "is served")
    told = [line for line in said.stderr.splitlines() if line.strip()] or ["it does not say why"]
    return failure(
        question, f"the server refuses: {told[0]}", "ask another server, or have it serve this kernel"
    )


async def _version(said: Said, environ: Mapping[str, str]) -> Finding:
    if shutil.which(environ.get("SYSTEMTAP_STAP") or "stap", path=environ.get("PATH")) is None:
        return failure(
            "version", f"the server's is {said.version}; there is no stap here", "install systemtap-client"
        )
    try:
        stap = await find_stap(environ)
    except StapsrvError as exc:
        return fault("version", exc)
    if _number(said.version) < _number(stap.version):
        return warning("version", f"the server's stap is {said.version}, older than {stap.version} here")
    return ok("version", f"{said.version} there, {stap.version} here")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError) and not str(exc):
        return f"no answer within {CONNECT_S:g} s"
    # anyio tries every address of a host, and keeps what became of each as the cause.
    cause = exc.__cause__
    tried = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause or exc]
    reasons = dict.fromkeys(os.strerror(one.errno) for one in tried if isinstance(one, OSError) and one.errno)
    return ", ".join(reasons) or str(exc) or "the connection was closed"
