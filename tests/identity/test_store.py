"""The identities of one process: shared by directory, loaded again when they changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import pytest
from kit.service import LogLines

from stapsrv.identity.store import IdentityStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> IdentityStore:
    return IdentityStore({"SYSTEMTAP_DIR": str(tmp_path / "systemtap")})


@pytest.fixture
def database(pristine_identity: Path, tmp_path: Path) -> Path:
    """A certificate database of the test's own."""
    copy = tmp_path / "database"
    shutil.copytree(pristine_identity, copy)
    return copy


@pytest.fixture
def lines() -> LogLines:
    return LogLines()


async def test_servers_of_one_directory_share_one_identity(store, database, lines):
    kept = []

    async def obtain() -> None:
        kept.append(await store.obtain(database, lines.log))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(obtain)
    assert kept[0] is kept[1] is kept[2]
    # Each server's log tells of it all the same.
    assert lines.events().count("identity.found") == 3
    assert lines.events().count("identity.valid") == 3
    assert lines.events().count("trust.established") == 1


async def test_replaced_database_is_loaded_again(store, database, lines, tmp_path):
    before = await store.obtain(database, lines.log)
    for name in ("cert9.db", "key4.db", "stap.cert"):
        (database / name).unlink()
    after = await store.obtain(database, lines.log)
    assert after.identity.serial != before.identity.serial
    assert (await store.obtain(database, lines.log)) is after


async def test_default_directory_is_the_user_s_own(store, database, lines, tmp_path):
    shutil.copytree(database, tmp_path / "systemtap" / "ssl" / "server")
    kept = await store.obtain(None, lines.log)
    assert kept.identity.directory == tmp_path / "systemtap" / "ssl" / "server"
    assert kept.not_after == kept.identity.not_after


async def test_trust_that_cannot_be_had_does_not_stop_a_server(store, database, lines, tmp_path):
    (tmp_path / "systemtap").write_text("in the way")
    assert await store.obtain(database, lines.log)
    (reason,) = lines.reasons("trust.failed")
    assert "systemtap" in reason
