"""A compile server that only listens: it keeps what clients send, and sends the answers that it is given."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from stapsrv.client.trust import fingerprint_of

from .client import pack

PATIENCE_S = 60.0
MODULE = b"\x7fELF module"


def response(rc: int = 0, stdout: str = "", stderr: str = "", **files: bytes) -> bytes:
    """Return a response's zip; each of ``files`` is one, ``_`` in its name for a full stop."""
    return pack(
        [
            *(("version", "4.8"), ("rc", str(rc)), ("stdout", stdout), ("stderr", stderr)),
            *((f"stap000000/{name.replace('_', '.')}", data) for name, data in files.items()),
        ]
    )


@attrs.frozen
class Identity:
    """A server's certificate, and the files of it and its key."""

    certificate: x509.Certificate
    pem: Path
    key: Path

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.certificate)

    @classmethod
    def make(cls, place: Path, *, days: tuple[int, int] = (-1, 30), name: str = "localhost") -> Identity:
        """Make one that is valid from and until so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Systemtap Compile Server")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        place.mkdir(parents=True, exist_ok=True)
        self = cls(certificate, place / "server.pem", place / "server.key")
        self.pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        self.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return self


class RecordingServer:
    """Serves one connection after the other, in a thread.

    Attributes:
        requests: the zips that arrived.
        answer: what each is answered with.
        faults: of the next connections, one each: ``reset`` before the handshake, ``close`` instead of it,
            ``cut`` in the middle of the answer, ``hang`` until the client leaves, or empty for none.
        together: has each answer wait for others, as many as it says.
        seen: how many connections there were.
        busiest: how many there were at the same time, at most.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.requests: list[bytes] = []
        self.answer = response(stap_ko=MODULE)
        self.faults: list[str] = []
        self.together: threading.Barrier | None = None
        self.seen = self.busiest = 0
        self._now = 0
        self._counting = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @classmethod
    @contextlib.contextmanager
    def open(cls, identity: Identity) -> Iterator[RecordingServer]:
        self = cls(identity)
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            # Closing alone would not wake an accept.
            self._listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)
            self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.seen += 1
            fault = self.faults.pop(0) if self.faults else ""
            threading.Thread(target=self._serve, args=(connection, fault), daemon=True).start()

    def _serve(self, connection: socket.socket, fault: str) -> None:
        connection.settimeout(PATIENCE_S)
        with connection, contextlib.suppress(OSError):
            if fault == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if fault == "close":
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.identity.pem, self.identity.key)
            with context.wrap_socket(connection, server_side=True) as tls, tls.makefile("rb") as stream:
                length = int.from_bytes(stream.read(4), "big")
                if not length:
                    return
                self.requests.append(stream.read(length))
                self._answer(tls, fault)

    def _answer(self, tls: ssl.SSLSocket, fault: str) -> None:
        with self._counting:
            self._now += 1
            self.busiest = max(self.busiest, self._now)
        try:
            if self.together is not None:
                self.together.wait(PATIENCE_S)
            if fault == "hang":
                tls.recv(1)
            else:
                tls.sendall(self.answer[: len(self.answer) // 2] if fault == "cut" else self.answer)
        finally:
            with self._counting:
                self._now -= 1


def arguments_of(request: dict[str, bytes]) -> Sequence[bytes]:
    """Return the words that a request's entries have for stap."""
    return [
        request[f"argv{number}"] for number in range(1, 1 + sum(name.startswith("argv") for name in request))
    ]
