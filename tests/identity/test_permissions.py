"""Databases that others could read or replace are refused, with the remedy."""

from __future__ import annotations

import pytest
import structlog

from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import load_or_create_identity
from stapsrv.identity.permissions import refuse_exposed


@pytest.fixture
def database(tmp_path):
    directory = tmp_path / "ssl" / "server"
    directory.mkdir(parents=True)
    (directory / "key4.db").write_text("key")
    (directory / "key4.db").chmod(0o600)
    return directory


def test_private_database_is_accepted(database):
    refuse_exposed(database)
    refuse_exposed(database / "missing")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_key_that_others_can_read_is_refused(database, mode):
    (database / "key4.db").chmod(mode)
    with pytest.raises(IdentityError) as caught:
        refuse_exposed(database)
    assert str(caught.value) == (
        f"{database}/key4.db: holds a private key, and others than its owner have access to it; "
        f"chmod 600 {database}/key4.db, and make a new certificate if anybody may have read it"
    )


@pytest.mark.parametrize("above", [0, 1])
def test_directory_that_everybody_may_write_is_refused(database, above):
    place = [database, database.parent][above]
    place.chmod(0o777)
    with pytest.raises(IdentityError) as caught:
        refuse_exposed(database)
    assert str(caught.value) == (
        f"{place}: everybody may write to it, and so replace the certificate database in it; "
        f"chmod o-w {place}"
    )
    place.chmod(0o1777)
    refuse_exposed(database)


@pytest.mark.anyio
async def test_server_does_not_start_with_an_exposed_key(pristine_identity, tmp_path):
    import shutil

    directory = tmp_path / "server"
    shutil.copytree(pristine_identity, directory)
    (directory / "key4.db").chmod(0o644)
    before = {path.name: path.read_bytes() for path in directory.glob("*.db")}
    log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
    with pytest.raises(IdentityError, match="chmod 600"):
        await load_or_create_identity(directory, log=log)
    assert {path.name: path.read_bytes() for path in directory.glob("*.db")} == before
