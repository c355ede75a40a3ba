"""A client's way to a server elsewhere, step by step, and where it ends."""

from __future__ import annotations

import functools
import ipaddress
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
from stapsrv.doctor.certificates import dates_of, trust_of
from stapsrv.doctor.findings import Finding, failure, fault, ok, warning
from stapsrv.doctor.probe_client import CONNECT_S, Said, ask, handshake
from stapsrv.errors import ProtocolError, StapsrvError
from stapsrv.system.blocking import BlockingCalls

_PROBE = (b"-p1", b"-e", b"probe begin { exit() }")
"""The first pass reads the script and no more: it costs the server a fraction of a second."""
_MOST_ADDRESSES = 8
"""That are tried, one after the other as a client does it; each may take its time."""
_UNREADABLE = (
    *(ValueError, UnsupportedAlgorithm, x509.UnsupportedGeneralNameType),
    *(x509.DuplicateExtension, x509.InvalidVersion),
)
"""What names in a certificate may be: they are first read when somebody asks for them."""
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


async def check_remote(destination: Destination, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Go to a server as a client of this user would; ends where no client gets further."""
    try:
        addresses = await _addresses(destination)
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
        yield await trust_of(
            shown.certificate,
            environ,
            distrust="your client does not trust this server's certificate",
            remedy=f"stap --trust-servers=ssl --use-server={destination.address}",
        )
        said = await ask(tls, destination.release, os.uname().machine, _PROBE)
    yield _release(said, destination)
    yield await _version(said, environ)


async def _addresses(destination: Destination) -> list[str]:
    """Look a host up; no event loop's own way, since that waits for a resolver that nobody waits for.

    Raises:
        OSError: it has no address, or the resolver does not say.
        UnicodeError: it is no host name.
    """
    look_up = functools.partial(
        socket.getaddrinfo, destination.host, destination.port, type=socket.SOCK_STREAM
    )
    found = await BlockingCalls().run(look_up, timeout_s=CONNECT_S)
    return [str(address) for address in dict.fromkeys(entry[4][0] for entry in found)]


async def _connect(addresses: Sequence[str], port: int) -> SocketStream:
    """Connect to the first address that answers.

    Raises:
        OSError: there is none; the text is what became of each.
    """
    reasons = []
    for address in addresses[:_MOST_ADDRESSES]:
        try:
            with anyio.fail_after(CONNECT_S):
                return await anyio.connect_tcp(address, port)
        except (OSError, ValueError) as exc:
            reasons.append(_reason(exc))
    raise ConnectionError(", ".join(dict.fromkeys(reasons)))


def _names(certificate: x509.Certificate, destination: Destination) -> Finding:
    """Return whether the certificate is for the host that was asked for; clients only remark if not."""
    try:
        names = _names_in(certificate)
    except _UNREADABLE as exc:
        return warning("host name", f"the certificate's names cannot be read: {exc}")
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


def _release(said: Said, destination: Destination) -> Finding:
    question = f"kernel {destination.release}"
    if said.rc == 0:
        return ok(question, "is served")
    why = "it does not say why" if said.rc is not None else "it gives no result"
    told = [line for line in said.stderr.splitlines() if line.strip()] or [why]
    return failure(
        question, f"the server refuses: {told[0]}", "ask another server, or have it serve this kernel"
    )


async def _version(said: Said, environ: Mapping[str, str]) -> Finding:
    if shutil.which(environ.get("SYSTEMTAP_STAP") or "stap", path=environ.get("PATH")) is None:
        return failure(
            "version",
            f"the server's is {said.version}; there is no stap here",
            "install it (Debian: systemtap and systemtap-client)",
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
