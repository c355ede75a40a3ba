"""Databases that others could read or replace are refused, with the remedy."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
import structlog

from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import load_or_create_identity
from stapsrv.identity.permissions import refuse_exposed, tighten_own


@pytest.fixture
def public():
    """A directory that others can come to; the tests' own are private."""
    with tempfile.TemporaryDirectory(prefix="stapsrv-test-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def database(public):
    directory = public / "ssl" / "server"
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


def exposes(database):
    with pytest.raises(IdentityError) as caught:
        refuse_exposed(database)
    return str(caught.value)


@pytest.mark.parametrize("above", [0, 1])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_directory_that_others_may_write_is_refused(database, above, mode):
    place = [database, database.parent][above]
    place.chmod(mode)
    if os.geteuid() == 0 and mode == 0o775 and above:
        # Above the database, root may let a group write.
        refuse_exposed(database)
        return
    assert exposes(database) == (
        f"{place}: others may write to it, and so replace the certificate database in it; chmod go-w {place}"
    )
    place.chmod(mode | 0o1000)
    refuse_exposed(database)


def test_directory_behind_a_link_is_looked_at_too(database, tmp_path):
    (tmp_path / "link").symlink_to(database)
    database.parent.chmod(0o777)
    assert exposes(tmp_path / "link").startswith(f"{database.parent}: ")


def test_directory_that_others_cannot_come_to_is_no_danger(database):
    database.parent.chmod(0o700)
    database.chmod(0o777)
    refuse_exposed(database)
    assert tighten_own(database) == []


def test_own_directories_are_tightened_and_no_more(database):
    """As SystemTap's own programs make them."""
    for path in (database.parent, database):
        path.chmod(0o2777)
    # Doctor says nothing of what the next start mends.
    refuse_exposed(database, once_tightened=True)
    assert tighten_own(database) == [database.parent, database]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (database.parent, database)] == [0o2755] * 2
    refuse_exposed(database)


def test_directories_of_another_user_are_left_alone(database, monkeypatch):
    database.chmod(0o777)
    uid = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert tighten_own(database) == []
    assert exposes(database).startswith(f"{database}: ")
    with pytest.raises(IdentityError):
        refuse_exposed(database, once_tightened=True)


@pytest.mark.anyio
async def test_server_starts_in_the_directories_that_systemtap_made(pristine_identity, public):
    directory = public / ".systemtap" / "ssl" / "server"
    shutil.copytree(pristine_identity, directory)
    places = [directory.parent.parent, directory.parent, directory]
    for path in places:
        path.chmod(0o777)
    with structlog.testing.capture_logs() as logged:
        await load_or_create_identity(directory, log=structlog.get_logger())
    assert [entry["directory"] for entry in logged if entry["event"] == "identity.tightened"] == places
    assert [stat.S_IMODE(path.stat().st_mode) for path in places] == [0o755] * 3


@pytest.mark.anyio
async def test_server_does_not_start_with_an_exposed_key(pristine_identity, tmp_path):
    directory = tmp_path / "server"
    shutil.copytree(pristine_identity, directory)
    (directory / "key4.db").chmod(0o644)
    before = {path.name: path.read_bytes() for path in directory.glob("*.db")}
    log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
    with pytest.raises(IdentityError, match="chmod 600"):
        await load_or_create_identity(directory, log=log)
    assert {path.name: path.read_bytes() for path in directory.glob("*.db")} == before
