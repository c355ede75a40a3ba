"""Certificates that are renewed while a server serves: what the real client sees of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from kit.client import exchange, request
from kit.real import Stap, cert, wait_until

from stapsrv.identity.certificate import CERTIFICATE_FILE, NICKNAME, Identity
from stapsrv.identity.nss import Database
from stapsrv.identity.selfsigned import host_name, make_certificate

SCRIPT = ("-p1", "-e", "probe begin { exit() }")
LIFETIME = timedelta(days=365)


def expiring_soon(directory: Path, *, left_s: float) -> datetime:
    """Make a server's database whose certificate has only some seconds left; returns its end."""
    directory.mkdir(parents=True)
    certificate, key = make_certificate(host_name(), datetime.now(UTC) - LIFETIME + timedelta(seconds=left_s))

    async def fill() -> None:
        database = Database(directory)
        await database.create()
        await database.import_identity(certificate, key, NICKNAME, "PCu,,PCu")

    anyio.run(fill)
    (directory / CERTIFICATE_FILE).write_bytes(Identity(directory, certificate, key).der)
    return certificate.not_valid_after_utc


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_client_that_meets_an_expired_certificate_is_served_at_its_second_try(stap, serve, backend, tmp_path):
    """The client waits 2 s before it tries again; by then the server has another certificate."""
    expires = expiring_soon(tmp_path / "ssl", left_s=15)
    server = serve("--ssl", tmp_path / "ssl", backend=backend)
    wait_until(lambda: datetime.now(UTC) > expires)
    ran = stap.via(server.port, *SCRIPT)
    if ran.status != 0:
        # On a machine so busy that a key takes longer than the client waits, the next one is served.
        server.log.wait("Generating a new certificate database directory")
        server.log.wait("The local client trusts this server", count=2)
        ran = stap.via(server.port, *SCRIPT)
    assert (ran.status, "# parse tree dump" in ran.stdout) == (0, True), ran.stderr
    assert server.log.has("Certificate has expired", 1)
    assert server.log.has("Generating a new certificate database directory", 1)
    assert server.log.count("Accepted connection") >= 2


def test_renewal_under_load_loses_no_request(stap, serve, tmp_path):
    server = serve("--ssl", tmp_path / "ssl")
    before = serial(stap, tmp_path / "ssl")
    payload = request(*SCRIPT, release=stap.installation.release)
    statuses: list[int] = []
    renewed = anyio.Event()

    async def ask_until_renewed() -> None:
        while not renewed.is_set():
            statuses.append((await exchange(server.port, payload)).rc)
        statuses.append((await exchange(server.port, payload)).rc)

    async def renew() -> None:
        await anyio.to_thread.run_sync(cert, stap, "renew", tmp_path / "ssl")
        renewed.set()

    async def load() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask_until_renewed)
            tasks.start_soon(renew)

    anyio.run(load)
    assert len(statuses) > 3
    assert set(statuses) == {0}
    assert serial(stap, tmp_path / "ssl") != before
    # A user who trusted the server before goes on without a word.
    ran = stap.via(server.port, *SCRIPT)
    assert ran.status == 0, ran.stderr


def serial(stap: Stap, directory: Path) -> str:
    (line,) = [line for line in cert(stap, "show", directory).splitlines() if line.startswith("serial:")]
    return line
