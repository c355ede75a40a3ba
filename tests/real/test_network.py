"""The ways on which the real client comes to a server: addresses, and versions of TLS."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
from collections.abc import Iterator

import attrs
import pytest
from kit.real import Stap

REQUEST = ("-p2", "-e", "probe begin { exit() }")
ANSWER = "begin /* <- begin */\n"

SAYS_1_3 = bytes.fromhex("002b00020304")
"""RFC 8446, supported_versions: the extension by which a server's hello says that it speaks TLS 1.3."""


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("localhost:{port}", r"127\.0\.0\.1:\d+"),
        ("127.0.0.1:{port}", r"127\.0\.0\.1:\d+"),
        ("[::1]:{port}", r"\[::1\]:\d+"),
    ],
)
def test_addresses(server, stap, address, peer):
    accepted = rf"Accepted connection from ({peer})$"
    before = server.log.count(accepted)
    ran = stap.via(address.format(port=server.port), *REQUEST)
    assert ran.status == 0, ran.stderr
    assert ran.stdout.endswith(ANSWER)
    server.log.wait(accepted, count=before + 1)
    own = [match[1] for line in server.log.lines if (match := re.match(accepted, line))][before:]
    # Of this client: that of another test's may be logged only now.
    server.log.wait(rf"Request from ({'|'.join(map(re.escape, own))}) complete$")


@pytest.mark.parametrize("newest", ["tls1.2", "tls1.3"])
def test_versions_of_tls(server, stap, tmp_path, newest):
    client = limited(stap, newest)
    with relay(server.port) as between:
        ran = client.via(between.port, *REQUEST)
    assert ran.status == 0, ran.stderr
    assert ran.stdout.endswith(ANSWER)
    assert (SAYS_1_3 in between.first_answer) == (newest == "tls1.3")


def limited(stap: Stap, newest: str) -> Stap:
    """Return a user with the same trust, whose client speaks no newer TLS: a policy of NSS's."""
    directory = stap.place / "limited"
    shutil.copytree(stap.directory / "ssl/client", directory / "ssl/client")
    with (directory / "ssl/client/pkcs11.txt").open("a") as modules:
        modules.write(
            f'\nlibrary=\nname=Policy\nNSS=flags=policyOnly,moduleDB\nconfig="allow=tls-version-max={newest}"\n\n'
        )
    return attrs.evolve(stap, directory=directory)


@attrs.define
class Relay:
    """Stands between one client and a server, and keeps the server's first words."""

    port: int
    first_answer: bytes = b""

    def carry(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what comes from the server until it is done."""
        while data := server.recv(65536):
            self.first_answer = self.first_answer or data
            client.sendall(data)
        client.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay(port: int) -> Iterator[Relay]:
    """Relay one connection; the end of the block is that of the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as connections:
        listener.settimeout(60)
        relayed = Relay(listener.getsockname()[1])

        def serve() -> None:
            client = connections.enter_context(listener.accept()[0])
            server = connections.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            back = threading.Thread(target=relayed.carry, args=(client, server))
            back.start()
            while data := client.recv(65536):
                server.sendall(data)
            back.join()

        there = threading.Thread(target=serve)
        there.start()
        yield relayed
        there.join(60)
        assert not there.is_alive()
