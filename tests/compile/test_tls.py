"""What a client may send that brings no data, while it shakes hands, sends, waits and closes."""

from __future__ import annotations

import ssl
import struct
from pathlib import Path

import anyio
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from kit.client import Answer, connect, exchange, frame, read_answer, request, trusting
from kit.loops import every_loop
from kit.service import running_server

from stapsrv.compile.stats import ConnectionOutcome
from stapsrv.rejection import RejectReason

pytestmark = [pytest.mark.anyio, every_loop]

SAID = "the client sends TLS records without data"
ALLOWED = 64
MANY = 4000


class KeyUpdater:
    """Makes the key updates of a client (RFC 8446, 4.6.3, 5.2, 5.3 and 7)."""

    def __init__(self, directory: Path) -> None:
        self.context = trusting(minimum_version=ssl.TLSVersion.TLSv1_3)
        self._keys = directory / "keys"
        self.context.keylog_filename = str(self._keys)
        self._secret = b""

    def records(self, number: int, *, sent: int = 0) -> bytes:
        """Return records that follow ``sent`` others, of data."""
        if not self._secret:
            lines = (line.split() for line in self._keys.read_text().splitlines())
            secrets = {words[0]: words[-1] for words in lines}
            self._secret = bytes.fromhex(secrets["CLIENT_TRAFFIC_SECRET_0"])
        return self._record(sent) + b"".join(self._record(0) for _ in range(number - 1))

    def _record(self, sequence: int) -> bytes:
        update = b"\x18\x00\x00\x01\x00" + b"\x16"
        header = b"\x17\x03\x03" + struct.pack(">H", len(update) + 16)
        key, iv = self._expand(b"key", 32), self._expand(b"iv", 12)
        nonce = (int.from_bytes(iv, "big") ^ sequence).to_bytes(12, "big")
        self._secret = self._expand(b"traffic upd", 48)
        return header + AESGCM(key).encrypt(nonce, update, header)

    def _expand(self, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack(">HB", length, len(label)) + label + b"\0"
        return HKDFExpand(SHA384(), length, info).derive(self._secret)


@pytest.fixture
def updater(tmp_path: Path) -> KeyUpdater:
    return KeyUpdater(tmp_path)


def counted(running) -> dict[RejectReason, int]:
    return {reason: number for reason, number in running.service.rejections.counts.items() if number}


async def test_some_key_updates_are_taken(updater):
    async with running_server() as running, await connect(running.port, updater.context) as tls:
        await tls.transport_stream.send(updater.records(ALLOWED // 2))
        await tls.transport_stream.send_eof()
        assert await read_answer(tls) == b""
    assert "connection.failed" not in running.lines.events()
    assert running.service.counters.connections[ConnectionOutcome.EMPTY] == 1


async def test_key_updates_without_end_end_the_connection(updater):
    async with running_server(request_s=60) as running, await connect(running.port, updater.context) as tls:
        await tls.transport_stream.send(updater.records(MANY))
        await running.lines.wait("connection.failed")
        assert running.lines.reasons("connection.failed") == [SAID]
        assert counted(running) == {RejectReason.TLS_RECORDS: 1}
        assert (await exchange(running.port, request("-p1"))).rc == 0


async def test_handshake_in_too_many_pieces_ends_the_connection():
    """Each byte of the client's hello in a record of its own."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting().wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()[5:]
    pieces = b"".join(b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in hello)
    assert len(hello) > 2 * ALLOWED
    async with running_server(handshake_s=60) as running:
        async with await anyio.connect_tcp("127.0.0.1", running.port) as stream:
            # One after the other: what comes at once is handled at once.
            for begin in range(0, len(pieces), 6):
                try:
                    await stream.send(pieces[begin : begin + 6])
                except anyio.BrokenResourceError:
                    break
            await running.lines.wait("connection.failed")
    assert running.lines.reasons("connection.failed") == [SAID]


async def test_client_that_floods_while_it_waits_takes_its_compile_along(updater):
    async with running_server() as running:
        running.engine.gate = anyio.Event()
        async with await connect(running.port, updater.context) as tls:
            await tls.send(frame(request("-p1")))
            await running.engine.wait(lambda: running.engine.jobs)
            await tls.transport_stream.send(updater.records(MANY, sent=1))
            await running.engine.wait(lambda: running.engine.cancelled)
            await running.lines.wait("request.summary")
    assert running.lines.reasons("connection.failed") == [SAID]
    assert counted(running) == {RejectReason.TLS_RECORDS: 1}


async def test_request_in_pieces_of_a_byte_is_answered():
    """As many records as bytes, each with data."""
    script = "x" * 4 * ALLOWED
    async with running_server() as running, await connect(running.port) as tls:
        for byte in frame(request("-p1", "-e", script)):
            await tls.send(bytes([byte]))
        assert Answer.of(await read_answer(tls)).rc == 0


async def test_large_answer_goes_out_in_blocks():
    async with running_server() as running:
        running.engine.module = bytes(range(256)) * 20_000
        answer = await exchange(running.port, request("-p4"))
    assert answer.files["stap_x.ko"] == bytes(range(256)) * 20_000
