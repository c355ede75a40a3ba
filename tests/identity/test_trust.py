from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import NICKNAME, Identity
from stapsrv.identity.diagnosis import DamagedDatabase
from stapsrv.identity.nss import DATABASE_FILES, Database
from stapsrv.identity.trust import authorize, default_client_directory

from .conftest import (
    DAMAGES,
    Log,
    contents,
    make_read_only,
    modes,
    needs_permissions,
    set_mode,
    umask,
)

pytestmark = pytest.mark.anyio

ESTABLISHED = ["trust.established"]


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """Where a client's database will be."""
    return tmp_path / "ssl" / "client"


def test_default_directory():
    assert default_client_directory({"HOME": "/home/me"}) == Path("/home/me/.systemtap/ssl/client")
    assert default_client_directory({"SYSTEMTAP_DIR": "/data"}) == Path("/data/ssl/client")


@pytest.mark.parametrize("mask", [0o000, 0o077])
async def test_missing_database_is_made_readable_by_all(made: Identity, client: Path, log: Log, mask: int):
    with umask(mask):
        await authorize(made.certificate, client, log=log.logger)
    assert modes(client) == {".": 0o755, **dict.fromkeys(DATABASE_FILES, 0o644)}
    assert await Database(client).certificates(NICKNAME) == [made.certificate]
    assert await Database(client).listing() == [(NICKNAME, "P,P,P")]
    assert log.events == ESTABLISHED
    assert log.entry("trust.established")["directory"] == client


async def test_authorizing_again_changes_nothing(made: Identity, client: Path, log: Log):
    await authorize(made.certificate, client, log=log.logger)
    before = contents(client)
    await authorize(made.certificate, client, log=log.logger)
    assert contents(client) == before
    assert log.events == ESTABLISHED * 2


async def test_previous_certificate_stays_trusted(made: Identity, another: Identity, client: Path, log: Log):
    await authorize(made.certificate, client, log=log.logger)
    await authorize(another.certificate, client, log=log.logger)
    trusted = await Database(client).certificates(NICKNAME)
    assert {certificate.serial_number for certificate in trusted} == {
        made.certificate.serial_number,
        another.certificate.serial_number,
    }
    assert await Database(client).listing() == [(NICKNAME, "P,P,P")] * 2


async def test_changed_trust_is_restored(made: Identity, client: Path, log: Log):
    await authorize(made.certificate, client, log=log.logger)
    await Database(client).import_certificate(made.certificate, NICKNAME, "p,p,p")
    await authorize(made.certificate, client, log=log.logger)
    assert await Database(client).listing() == [(NICKNAME, "P,P,P")]


async def test_concurrent_servers_are_all_trusted(made: Identity, another: Identity, client: Path, log: Log):
    async with anyio.create_task_group() as tasks:
        for identity in (made, another) * 3:
            tasks.start_soon(
                lambda identity: authorize(identity.certificate, client, log=log.logger), identity
            )
    assert len(await Database(client).certificates(NICKNAME)) == 2
    assert log.events == ESTABLISHED * 6


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_database_is_not_changed(made: Identity, client: Path, log: Log, damage: str):
    await authorize(made.certificate, client, log=Log().logger)
    DAMAGES[damage](client)
    before = contents(client)
    with pytest.raises(DamagedDatabase, match=f"{damage.split()[1]} is "):
        await authorize(made.certificate, client, log=log.logger)
    assert contents(client) == before
    assert log.events == []


@needs_permissions
async def test_read_only_database_that_lacks_the_certificate_is_an_error(
    made: Identity, another: Identity, client: Path, log: Log
):
    await authorize(made.certificate, client, log=Log().logger)
    make_read_only(client)
    await authorize(made.certificate, client, log=log.logger)
    assert log.events == ESTABLISHED
    with pytest.raises(IdentityError, match=r"permission denied on .*; let user .* read and write it"):
        await authorize(another.certificate, client, log=log.logger)
    set_mode(client, 0o755)
