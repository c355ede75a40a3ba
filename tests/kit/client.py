"""A compile client in Python: frames, zips and TLS, for what the real client would never send."""

from __future__ import annotations

import io
import socket
import ssl
import struct
import zipfile
from collections.abc import Iterable, Mapping

import anyio
import attrs
from anyio.streams.tls import TLSStream

RELEASE = "6.1.0-test"


@attrs.frozen
class Answer:
    """What a server sent, unpacked."""

    entries: Mapping[str, bytes]

    @classmethod
    def of(cls, data: bytes) -> Answer:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            return cls({name: archive.read(name) for name in archive.namelist()})

    @property
    def rc(self) -> int:
        return int(self.entries["rc"])

    @property
    def stdout(self) -> str:
        return self.entries["stdout"].decode()

    @property
    def stderr(self) -> str:
        return self.entries["stderr"].decode()

    @property
    def files(self) -> dict[str, bytes]:
        return {
            name.removeprefix("stap000000/"): data
            for name, data in self.entries.items()
            if name.startswith("stap000000/") and not name.endswith("/")
        }


def pack(entries: Iterable[tuple[str, bytes | str]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def request(*arguments: str | bytes, release: str = RELEASE, **entries: str) -> bytes:
    """Return a request's zip as the real client makes it."""
    return pack(
        [
            ("version", "4.8"),
            ("sysinfo", f"sysinfo: {release} x86_64"),
            *((f"argv{number}", argument) for number, argument in enumerate(arguments, 1)),
            *entries.items(),
        ]
    )


def reset_at_once(port: int, *, source: str = "127.0.0.1") -> None:
    """Connect and reset the connection, before a server on this thread's event loop can accept it."""
    with socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def trusting(**bounds: ssl.TLSVersion) -> ssl.SSLContext:
    """Return a context that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in bounds.items():
        setattr(context, name, value)
    return context


async def is_reset(port: int, *, source: str = "127.0.0.1") -> bool:
    """Connect, say nothing, and return whether the server resets the connection rather than wait or close."""
    target = "::1" if ":" in source else "127.0.0.1"
    with socket.create_connection((target, port), timeout=60, source_address=(source, 0)) as client:
        client.setblocking(False)
        with anyio.fail_after(60):
            await anyio.wait_readable(client)
        try:
            client.recv(1)
        except ConnectionResetError:
            return True
        return False


async def connect(
    port: int, context: ssl.SSLContext | None = None, *, source: str = "127.0.0.1"
) -> TLSStream:
    stream = await anyio.connect_tcp("127.0.0.1", port, local_host=source)
    try:
        return await TLSStream.wrap(
            stream, server_side=False, ssl_context=context or trusting(), standard_compatible=False
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


async def read_answer(tls: TLSStream) -> bytes:
    data = bytearray()
    try:
        while True:
            data += await tls.receive()
    except anyio.EndOfStream:
        return bytes(data)


async def exchange(port: int, payload: bytes, *, source: str = "127.0.0.1") -> Answer:
    """Send one request from an address and return its answer; bounded."""
    # The real stap may have to find out a kernel's features first.
    with anyio.fail_after(300):
        async with await connect(port, source=source) as tls:
            await tls.send(frame(payload))
            return Answer.of(await read_answer(tls))
