"""``stap-server doctor --client`` and a host that means harm: bounded, and never printed as it is."""

from __future__ import annotations

import contextlib
import io
import os
import re
import ssl
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtensionOID, NameOID
from kit.stap import make_versioned_stap

from stapsrv.doctor.findings import Finding, Verdict, document_of, lines_of
from stapsrv.doctor.remote import Destination, check_remote

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def environ(tmp_path):
    """With a stap of the version that the kit's servers have."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SYSTEMTAP_DIR": str(tmp_path / "systemtap"),
        "SYSTEMTAP_STAP": str(make_versioned_stap(tmp_path / "stap", "4.8")),
    }


def certified(directory: Path, *extensions: x509.ExtensionType, name: str = "Systemtap") -> ssl.SSLContext:
    """Return the context of a server whose certificate has these extensions."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, KEY.public_key(), 1, now, now + timedelta(days=365))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    pem = directory / "server.pem"
    pem.write_bytes(
        builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@contextlib.asynccontextmanager
async def answering(context: ssl.SSLContext | None, *parts: bytes) -> AsyncIterator[int]:
    """Answer each request with these bytes, over TLS; give the port. Without a context, say nothing."""

    async def talk(stream: SocketStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError):
            async with stream:
                if context is None:
                    await stream.receive(1)
                    await anyio.sleep_forever()
                tls = await TLSStream.wrap(
                    stream, server_side=True, ssl_context=context, standard_compatible=False
                )
                await tls.receive()
                for part in parts:
                    await tls.send(part)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, talk)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def go(port: int, environ) -> dict[str, Finding]:
    with anyio.fail_after(60):
        destination = Destination("127.0.0.1", port, "6.1.0-test")
        return {found.question: found async for found in check_remote(destination, environ)}


def packed(method: int = zipfile.ZIP_DEFLATED, **entries: bytes) -> bytes:
    whole = {"version": b"4.8", "rc": b"0", "stdout": b"", "stderr": b""} | entries
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in whole.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def bomb() -> bytes:
    """Return an answer whose ``rc`` states a size of one byte, and is 200 MiB."""
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    stream = b"".join(deflater.compress(bytes(MIB)) for _ in range(200)) + deflater.flush()
    answer = packed(zipfile.ZIP_STORED, rc=stream)
    for signature, method, size in ((b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)):
        for found in re.finditer(re.escape(signature), answer):
            at = found.start()
            if struct.unpack_from("<I", answer, at + size)[0] == len(stream):
                patched = bytearray(answer)
                struct.pack_into("<H", patched, at + method, zipfile.ZIP_DEFLATED)
                struct.pack_into("<I", patched, at + size, 1)
                answer = bytes(patched)
    return answer


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff" * 1000, id="garbage"),
        pytest.param(packed()[:-30], id="cut"),
        pytest.param(packed(zipfile.ZIP_LZMA), id="lzma"),
        pytest.param(packed(zipfile.ZIP_BZIP2), id="bzip2"),
        pytest.param(packed(rc=b"9" * 100_000), id="number"),
        pytest.param(packed(rc=b"none"), id="none"),
        pytest.param(packed().replace(b"version", b"VERSION"), id="version"),
        pytest.param(packed(stderr=bytes(17 * MIB)), id="large"),
    ],
)
async def test_malformed_response_is_an_error(environ, tmp_path, answer):
    async with answering(certified(tmp_path), answer) as port:
        found = await go(port, environ)
    assert found["conversation"].verdict is Verdict.FAILURE
    assert found["conversation"].answer == "The answer is not that of a compile server"


async def test_response_without_status_is_a_refusal(environ, tmp_path):
    """It answers with its version and nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("version", "4.8")
    async with answering(certified(tmp_path), buffer.getvalue()) as port:
        found = await go(port, environ)
    assert found["kernel 6.1.0-test"].answer == "the server refuses: it gives no result"
    assert found["version"].verdict is not Verdict.FAILURE


async def test_zip_bomb_is_not_unpacked(environ, tmp_path):
    answer = bomb()
    async with answering(certified(tmp_path), answer) as port:
        tracemalloc.start()
        try:
            found = await go(port, environ)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert found["conversation"].answer == "The answer is not that of a compile server"
    assert peak < 20 * MIB


async def test_endless_response_is_cut_off(environ, tmp_path):
    async with answering(certified(tmp_path), *[bytes(MIB)] * 40) as port:
        found = await go(port, environ)
    assert found["conversation"].answer == "The answer has no end"


async def test_control_characters_are_not_printed(environ, tmp_path):
    answer = packed(rc=b"1", version=b"\x1b]0;title\x07", stderr=b"\x1b[2J\x9b\n" + b"more\n" * 100_000)
    async with answering(certified(tmp_path, name="\x1b[31mred"), answer) as port:
        found = await go(port, environ)
    told = "".join(line for finding in found.values() for line in lines_of(finding))
    for text in (told, document_of(list(found.values()))):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
        assert len(text) < 5_000
    assert "the server refuses: \\x1b[2J" in told


@pytest.mark.parametrize("silent", ["at once", "after the handshake"])
async def test_silent_server_times_out(environ, tmp_path, monkeypatch, silent):
    monkeypatch.setattr("stapsrv.doctor.probe_client.CONNECT_S", 0.3)
    monkeypatch.setattr("stapsrv.doctor.probe_client._ANSWER_S", 0.3)
    context = None if silent == "at once" else certified(tmp_path)
    async with answering(context) as port:
        found = await go(port, environ)
    assert found["conversation"].verdict is Verdict.FAILURE


async def test_odd_certificates_are_reported(environ, tmp_path):
    unreadable = x509.UnrecognizedExtension(ExtensionOID.AUTHORITY_INFORMATION_ACCESS, b"\xff")
    many = x509.SubjectAlternativeName([x509.DNSName(f"host{number}.example.org") for number in range(2_000)])
    for extension, told in ((unreadable, "names cannot be read"), (many, "host0.example.org")):
        async with answering(certified(tmp_path, extension), packed()) as port:
            found = await go(port, environ)
        assert told in found["host name"].answer
        assert len(found["host name"].answer) < 1_100
        assert found["kernel 6.1.0-test"].verdict is Verdict.OK
