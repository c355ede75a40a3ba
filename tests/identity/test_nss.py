from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from stapsrv.errors import IdentityError
from stapsrv.identity import nss
from stapsrv.identity.certificate import NICKNAME, Identity
from stapsrv.identity.diagnosis import DamagedDatabase
from stapsrv.identity.nss import DATABASE_FILES, Database

from .conftest import (
    DAMAGES,
    contents,
    make_read_only,
    modes,
    names,
    needs_permissions,
    new_directory,
    remove,
    set_mode,
    umask,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Let stand-ins note how the tools are called, what their paths lead to, and with which umask."""
    notes = tmp_path / "calls"
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("certutil", "pk12util"):
        (tools / tool).write_text(
            f'#!/bin/sh\n{{ umask; for word; do echo "$word"; case $word in /proc/self/fd/*)\n'
            f'readlink "$word";; esac; done; }} >>{notes}\nexec {shutil.which(tool)} "$@"\n'
        )
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    return lambda: notes.read_text().splitlines()


async def test_new_database_is_private_and_empty(tmp_path: Path):
    database = Database(tmp_path)
    assert not database.exists
    with umask(0):
        await database.create()
    assert database.exists
    assert names(tmp_path) == sorted(DATABASE_FILES)
    assert modes(tmp_path) == {".": modes(tmp_path)["."], **dict.fromkeys(DATABASE_FILES, 0o600)}
    assert str(tmp_path) not in (contents(tmp_path)["pkcs11.txt"]).decode()
    assert await database.listing() == []
    assert await database.certificates("anybody") == []


async def test_existing_database_is_not_overwritten(identity: Identity):
    before = contents(identity.directory)
    with pytest.raises(IdentityError, match="holds a certificate database already"):
        await Database(identity.directory).create()
    assert contents(identity.directory) == before


async def test_imported_identity_can_be_exported(tmp_path: Path, made: Identity):
    database = Database(tmp_path, "open sesame ä")
    await database.create()
    await database.import_identity(made.certificate, made.key, "some name", "PCu,,PCu")
    assert await database.listing() == [("some name", "CPu,u,Cu")]
    ((certificate, key),) = await database.identities("some name")
    assert certificate == made.certificate
    assert isinstance(key, RSAPrivateKey)
    assert key.private_numbers() == made.key.private_numbers()


async def test_directory_with_odd_characters_works(tmp_path: Path, made: Identity):
    odd = tmp_path / "50% of 'what'? #1 \\ \"x\""
    shutil.copytree(made.directory, odd)
    assert await Database(odd).certificates(NICKNAME) == [made.certificate]


async def test_generations_of_a_certificate_share_a_nickname(
    tmp_path: Path, made: Identity, another: Identity
):
    database = Database(tmp_path)
    await database.create(file_mode=0o644)
    await database.import_certificate(made.certificate, NICKNAME, "P,P,P")
    await database.import_certificate(another.certificate, NICKNAME, "P,P,P")
    assert {identity.serial for identity in (made, another)} == {
        Identity(tmp_path, certificate, made.key).serial
        for certificate in await database.certificates(NICKNAME)
    }
    assert await database.listing() == [(NICKNAME, "P,P,P")] * 2
    assert await database.identities(NICKNAME) == []


async def test_secrets_reach_the_tools_only_through_memory(
    calls: Callable[[], list[str]], tmp_path: Path, made: Identity
):
    database = Database(new_directory(tmp_path / "database"), "open sesame")
    await database.create()
    await database.import_identity(made.certificate, made.key, NICKNAME, "PCu,,PCu")
    await database.identities(NICKNAME)

    words = calls()
    assert "open sesame" not in words
    assert words.count("0077") == 5
    for flag in ("-f", "-k", "-w", "-i", "-o"):
        named = [words[at + 1 : at + 3] for at, word in enumerate(words) if word == flag]
        assert named
        for path, leads_to in named:
            assert path.startswith("/proc/self/fd/")
            assert leads_to.startswith("/memfd:")


def test_password_is_not_in_the_representation():
    assert "sesame" not in repr(Database(Path("/nowhere"), "open sesame"))


@pytest.mark.parametrize(
    ("password", "problem"), [("", "is protected by a password"), ("x", "the password is wrong")]
)
async def test_wrong_password_is_an_error(tmp_path: Path, made: Identity, password: str, problem: str):
    database = Database(tmp_path, "open sesame")
    await database.create()
    await database.import_identity(made.certificate, made.key, NICKNAME, "PCu,,PCu")
    with pytest.raises(IdentityError, match=problem) as caught:
        await Database(tmp_path, password).identities(NICKNAME)
    assert str(caught.value).startswith(f"{tmp_path}: the ")
    assert str(caught.value).endswith("; give its password (-P)")
    assert not isinstance(caught.value, DamagedDatabase)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_database_is_an_error(identity: Identity, damage: str):
    DAMAGES[damage](identity.directory)
    with pytest.raises(DamagedDatabase) as caught:
        await Database(identity.directory).identities(NICKNAME)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{identity.directory}: {damage.split()[1]} is ")


async def test_missing_module_list_loses_nothing(identity: Identity):
    remove(identity.directory / "pkcs11.txt")
    assert await Database(identity.directory).certificates(NICKNAME) == [identity.certificate]


@needs_permissions
async def test_read_only_database_can_be_read(identity: Identity, another: Identity):
    make_read_only(identity.directory)
    database = Database(identity.directory)
    assert len(await database.identities(NICKNAME)) == 1
    with pytest.raises(PermissionError):
        await database.import_certificate(another.certificate, NICKNAME, "P,P,P")


@needs_permissions
async def test_forbidden_database_is_a_permission_error(identity: Identity):
    set_mode(identity.directory / "cert9.db", 0)
    with pytest.raises(PermissionError, match=r"cert9\.db"):
        await Database(identity.directory).certificates(NICKNAME)


async def test_missing_tools_are_an_error(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IdentityError) as caught:
        await Database(identity.directory).certificates(NICKNAME)
    assert str(caught.value) == (
        "certutil: is not installed; install NSS's tools (Debian: libnss3-tools, Fedora: nss-tools)"
    )


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give certutil's place to a shell script."""
    tool = tmp_path / "bin" / "certutil"
    tool.parent.mkdir()
    tool.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    return lambda script: tool.write_text(f"#!/bin/sh\n{script}\n") and None


async def test_hanging_tool_is_killed(
    identity: Identity, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    stand_in("exec sleep 60")
    monkeypatch.setattr(nss, "_TOOL_TIMEOUT_S", 0.1)
    with pytest.raises(IdentityError, match=r"certutil: did not end within 0\.1 s; try again"):
        await Database(identity.directory).certificates(NICKNAME)


async def test_tool_that_fails_on_a_sound_database_is_an_error(
    identity: Identity, stand_in: Callable[[str], None]
):
    stand_in("echo 'certutil: function failed: SEC_ERROR_NO_MEMORY: none.' >&2\nexit 255")
    with pytest.raises(IdentityError) as caught:
        await Database(identity.directory).certificates(NICKNAME)
    assert not isinstance(caught.value, DamagedDatabase)
    assert str(caught.value) == (
        f"{identity.directory}: certutil failed on the certificate database (SEC_ERROR_NO_MEMORY); "
        f"see: certutil -L -d 'sql:{identity.directory}'"
    )


async def test_nonsense_from_a_tool_is_an_error(identity: Identity, stand_in: Callable[[str], None]):
    stand_in("echo nonsense")
    with pytest.raises(IdentityError, match="stap-server, as certutil shows it, cannot be read") as caught:
        await Database(identity.directory).certificates(NICKNAME)
    assert not isinstance(caught.value, DamagedDatabase)
