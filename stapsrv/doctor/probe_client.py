"""A compile client for checks: TLS handshake with any certificate, and one request without secrets.

What the server sends is bounded in time and memory, and read with the safeguards for a request's zip. Where a
connection fails, TimeoutError, ssl.SSLError, anyio.EndOfStream or anyio.BrokenResourceError says how.
"""

from __future__ import annotations

import io
import ssl
import struct
import warnings
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import attrs
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream
from cryptography import x509

from stapsrv.compile.protocol.archive import read_archive
from stapsrv.errors import ProtocolError

# For connecting, and for the handshake.
CONNECT_S = 10.0
_ANSWER_S = 60.0
# Of what a client sends; 0 says that it wanted only the certificate (PROTOCOL, the connection).
_LENGTH = struct.Struct(">I")
_MAX_ANSWER_BYTES = 16 * 1024 * 1024


@attrs.frozen
class TlsInfo:
    """The result of a handshake: the server's certificate, the protocol (``TLSv1.3``), the cipher suite."""

    certificate: x509.Certificate
    protocol: str
    cipher: str


@attrs.frozen
class ProbeResponse:
    """A server's response: the version of its protocol, which is that of its stap, and what users see."""

    version: str
    # None if there is no exit status, as SystemTap's own server does for other kernels.
    rc: int | None
    stderr: str


@asynccontextmanager
async def handshake(stream: ByteStream) -> AsyncIterator[tuple[TLSStream, TlsInfo]]:
    """Do the TLS handshake within ten seconds, and close the connection at the end.

    Raises:
        ProtocolError: the server shows no certificate, or none that can be read.
    """
    # Any certificate will do: what is wrong with it is for the checks to say.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with anyio.fail_after(CONNECT_S):
            tls = await TLSStream.wrap(
                stream, server_side=False, ssl_context=context, standard_compatible=False
            )
        session = tls.extra(TLSAttribute.ssl_object)  # noqa: S610 - anyio's, not a database's
        shown = session.getpeercert(binary_form=True)
        cipher = session.cipher()
        if shown is None or cipher is None:
            raise ProtocolError("The server shows no certificate")
        name, protocol, _bits = cipher
        yield tls, TlsInfo(_certificate(shown), session.version() or protocol, name)
    finally:
        await anyio.aclose_forcefully(stream)


async def finish(tls: TLSStream) -> None:
    """End the connection after the handshake in a way that the server does not log as an error."""
    with anyio.fail_after(CONNECT_S):
        await tls.send(bytes(_LENGTH.size))
        await _receive_all(tls)


async def send_probe(tls: TLSStream, release: str, arch: str, arguments: Sequence[bytes]) -> ProbeResponse:
    """Send a request without files over a connection of :func:`handshake`, and return the response.

    The connection is good for one request.

    Raises:
        ProtocolError: it is not the response of a compile server.
    """
    entries = [("version", b"1.6"), ("sysinfo", f"sysinfo: {release} {arch}".encode())]
    entries += [(f"argv{number}", argument) for number, argument in enumerate(arguments, 1)]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    payload = packed.getvalue()
    with anyio.fail_after(_ANSWER_S):
        await tls.send(_LENGTH.pack(len(payload)) + payload)
        return _read(await _receive_all(tls))


async def _receive_all(tls: TLSStream) -> bytes:
    data = bytearray()
    while True:
        try:
            data += await tls.receive()
        except anyio.EndOfStream:
            return bytes(data)
        if len(data) > _MAX_ANSWER_BYTES:
            raise ProtocolError("The answer has no end")


def _certificate(data: bytes) -> x509.Certificate:
    try:
        with warnings.catch_warnings():
            # About oddities that the user cannot do anything about.
            warnings.simplefilter("ignore")
            return x509.load_der_x509_certificate(data)
    except (ValueError, x509.InvalidVersion) as exc:
        raise ProtocolError(f"The server's certificate cannot be read: {exc}") from exc


def _read(answer: bytes) -> ProbeResponse:
    try:
        archive = read_archive(answer, max_bytes=_MAX_ANSWER_BYTES)
        entries = {file.path: file.data for file in archive.files}
        return ProbeResponse(
            entries[b"version"].decode("ascii", "replace").strip(),
            int(entries[b"rc"]) if b"rc" in entries else None,
            entries.get(b"stderr", b"").decode("utf-8", "replace"),
        )
    except (ProtocolError, KeyError, ValueError) as exc:
        raise ProtocolError("The answer is not that of a compile server") from exc
