"""Checks of a remote server, in the order of a client's way to it."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence

import anyio
import attrs
from anyio.abc import SocketStream
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from stapsrv.compile.engine.stap import find_stap
from stapsrv.config.addresses import is_address
from stapsrv.doctor.certificates import check_dates, check_trust
from stapsrv.doctor.findings import Finding, error, failure, ok, warning
from stapsrv.doctor.probe_client import CONNECT_S, ProbeResponse, handshake, send_probe
from stapsrv.errors import ProtocolError, StapsrvError
from stapsrv.identity.selfsigned import dns_names
from stapsrv.system.blocking import BlockingCalls

# The first pass only reads the script: it costs the server a fraction of a second.
_PROBE = (b"-p1", b"-e", b"probe begin { exit() }")
# Tried one after the other, as a client does; each may take CONNECT_S.
_MAX_ADDRESSES = 8
# Module and staprun fit together if both are older than this version, or neither is.
_MODULES_CHANGED = (5, 0)
# Clients from the first on, and before the second, take no certificate that they do not trust yet, not even
# to trust it (SEC_ERROR_UNKNOWN_ISSUER), unless NSS is set to verify as it did before.
_TRUSTING_BROKEN = ((5, 0), (5, 2))
# Names in a certificate are parsed only when they are used, with any of these errors.
_UNREADABLE = (
    *(ValueError, UnsupportedAlgorithm, x509.UnsupportedGeneralNameType),
    *(x509.DuplicateExtension, x509.InvalidVersion),
)
# How a connection ends that a server does not want: it is full, drains, or denies this address.
_BROKEN = (TimeoutError, ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError)


@attrs.frozen
class Destination:
    """A server, by name or address, and the kernel release to compile for."""

    host: str
    port: int
    release: str

    @property
    def address(self) -> str:
        """The argument of ``stap --use-server``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def check_remote(destination: Destination, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Check what a client of this user needs of a server; ends where no client gets further."""
    try:
        addresses = await _resolve(destination)
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "is no host name"
        yield failure("address", f"{destination.host}: {reason}", "check the name, or give an address")
        return
    yield ok("address", ", ".join(addresses))
    try:
        stream = await _connect(addresses, destination.port)
    except OSError as exc:
        yield failure(
            "connection",
            f"{destination.address}: {exc}",
            "see on that host whether the server runs (stap-server status), and what its firewall lets pass",
        )
        return
    yield ok("connection", destination.address)
    try:
        async for finding in _check_conversation(stream, destination, environ):
            yield finding
    except _BROKEN as exc:
        yield failure(
            "conversation",
            f"the server ends it: {_reason(exc)}",
            "it is full, drains, denies this host's address, or is no compile server; see its log",
        )
    except ProtocolError as exc:
        yield error("conversation", exc)


async def _check_conversation(
    stream: SocketStream, destination: Destination, environ: Mapping[str, str]
) -> AsyncIterator[Finding]:
    async with handshake(stream) as (tls, tls_info):
        yield ok("TLS", f"{tls_info.protocol}, {tls_info.cipher}")
        yield check_dates(tls_info.certificate)
        yield _check_host_name(tls_info.certificate, destination)
        yield await check_trust(
            tls_info.certificate,
            environ,
            distrust="your client does not trust this server's certificate",
            remedy=await _trust_remedy(destination, environ),
        )
        response = await send_probe(tls, destination.release, os.uname().machine, _PROBE)
    yield _check_release(response, destination)
    yield await _check_version(response, environ)


async def _trust_remedy(destination: Destination, environ: Mapping[str, str]) -> str:
    command = f"stap --trust-servers=ssl --use-server={destination.address}"
    with contextlib.suppress(StapsrvError):
        broken_since, mended = _TRUSTING_BROKEN
        if broken_since <= _number((await find_stap(environ)).version) < mended:
            return f"NSS_DISABLE_PKIX_VERIFY=1 {command}"
    return command


async def _resolve(destination: Destination) -> list[str]:
    # Not by anyio: its thread would be waited for at the end, however long the resolver takes.
    host, port = destination.host, destination.port
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await BlockingCalls().run(look_up, timeout_s=CONNECT_S)
    return [str(address) for address in dict.fromkeys(entry[4][0] for entry in found)]


async def _connect(addresses: Sequence[str], port: int) -> SocketStream:
    """Connect to the first address that answers; the error has the reason of each that does not."""
    reasons = []
    for address in addresses[:_MAX_ADDRESSES]:
        try:
            with anyio.fail_after(CONNECT_S):
                return await anyio.connect_tcp(address, port)
        except (OSError, ValueError) as exc:
            reasons.append(_reason(exc))
    raise ConnectionError(", ".join(dict.fromkeys(reasons)))


def _check_host_name(certificate: x509.Certificate, destination: Destination) -> Finding:
    """Check that the certificate is for this host; if it is not, clients only print a note."""
    try:
        names = _names_in(certificate)
    except _UNREADABLE as exc:
        return warning("host name", f"the certificate's names cannot be read: {exc}")
    if is_address(destination.host) or destination.host.lower().rstrip(".") in names:
        return ok("host name", ", ".join(sorted(names)) or "the certificate has none")
    return warning(
        "host name",
        f"the certificate is for {', '.join(sorted(names)) or 'nobody'}, not for {destination.host}",
        "go by one of its names, or let stap-gen-cert make one with this name too",
    )


def _names_in(certificate: x509.Certificate) -> set[str]:
    subject = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    names = [*(str(attribute.value) for attribute in subject), *dns_names(certificate)]
    return {name.lower() for name in names}


def _check_release(response: ProbeResponse, destination: Destination) -> Finding:
    question = f"kernel {destination.release}"
    if response.rc == 0:
        return ok(question, "is served")
    why = "it does not say why" if response.rc is not None else "it gives no result"
    lines = [line for line in response.stderr.splitlines() if line.strip()] or [why]
    return failure(
        question, f"the server refuses: {lines[0]}", "ask another server, or have it serve this kernel"
    )


async def _check_version(response: ProbeResponse, environ: Mapping[str, str]) -> Finding:
    if shutil.which(environ.get("SYSTEMTAP_STAP") or "stap", path=environ.get("PATH")) is None:
        return failure(
            "version",
            f"the server's is {response.version}; there is no stap here",
            "install it (Debian: systemtap and systemtap-client)",
        )
    try:
        stap = await find_stap(environ)
    except StapsrvError as exc:
        return error("version", exc)
    if (_number(response.version) < _MODULES_CHANGED) != (_number(stap.version) < _MODULES_CHANGED):
        return failure(
            "version",
            f"the server's is {response.version}, {stap.version} here: this staprun cannot run its modules",
            "use a server and a client of the same side of SystemTap 5.0",
        )
    if _number(response.version) < _number(stap.version):
        return warning("version", f"the server's stap is {response.version}, older than {stap.version} here")
    return ok("version", f"{response.version} there, {stap.version} here")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError) and not str(exc):
        return f"no answer within {CONNECT_S:g} s"
    # anyio tries every address of a host, and keeps the errors as the cause.
    cause = exc.__cause__
    tried = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause or exc]
    reasons = dict.fromkeys(os.strerror(one.errno) for one in tried if isinstance(one, OSError) and one.errno)
    return ", ".join(reasons) or str(exc) or "the connection was closed"
