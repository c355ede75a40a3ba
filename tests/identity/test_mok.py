"""Machine owner keys: what is made, what is taken, and what is left alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from kit.keys import small_keys
from kit.moks import make_mok, ml_dsa, no_trial

from stapsrv.errors import IdentityError
from stapsrv.identity.mok import (
    Mok,
    MokStore,
    create_mok,
    load_moks,
    moks_directory,
    sign_file_command,
    unfit_for_kernel,
)

from .conftest import Log, contents, names, needs_permissions, umask

pytestmark = pytest.mark.anyio
quickly = pytest.mark.usefixtures("quick_keys")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mok, Mok]:
    """Two keys in a directory that no test may change, in order of their fingerprints."""
    directory = tmp_path_factory.mktemp("pristine") / "moks"
    with small_keys():
        first, second = sorted((make_mok(directory), make_mok(directory)), key=lambda mok: mok.fingerprint)
    return first, second


@pytest.fixture
def moks(pristine: tuple[Mok, Mok], tmp_path: Path) -> Path:
    """Copies of the two, in a directory of the test's own."""
    return shutil.copytree(pristine[0].directory.parent, tmp_path / "moks")


@pytest.fixture
def store(moks: Path, log: Log) -> MokStore:
    return MokStore(moks, log.logger)


def openssl(*arguments: object) -> str:
    return subprocess.run(
        ["openssl", *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def test_moks_are_beside_the_database():
    assert moks_directory(Path("/st/ssl/server")) == Path("/st/ssl/server/moks")


def test_kernel_s_program_is_given_digest_key_certificate_and_module(pristine):
    mok, _ = pristine
    assert sign_file_command(Path("/tree/scripts/sign-file"), mok, Path("/x.ko")) == [
        "/tree/scripts/sign-file",
        "sha512",
        f"{mok.directory}/signing_key.priv",
        f"{mok.directory}/signing_key.x509",
        "/x.ko",
    ]


def test_certificate_is_what_openssl_makes_by_the_configuration_beside_it(tmp_path):
    mok = make_mok(tmp_path)
    openssl(
        *("req", "-new", "-x509", "-nodes", "-utf8", "-sha256", "-days", 36500, "-outform", "DER"),
        *("-config", tmp_path / "x509.genkey", "-out", tmp_path / "theirs", "-keyout", tmp_path / "key"),
    )
    ours, theirs = (
        openssl("x509", "-inform", "DER", "-in", path, "-noout", "-text")
        for path in (mok.certificate_file, tmp_path / "theirs")
    )
    assert outline(ours) == outline(theirs)
    assert "Public-Key: (4096 bit)" in ours
    assert "CA:FALSE" in ours
    assert mok.certificate.not_valid_after_utc - mok.certificate.not_valid_before_utc == timedelta(36500)


@quickly
class TestCreate:
    def test_directory_is_named_as_mokutil_shows_the_certificate(self, pristine):
        for mok in pristine:
            shown = openssl(
                "x509", "-inform", "DER", "-in", mok.certificate_file, "-noout", "-fingerprint", "-sha1"
            )
            assert mok.directory.name == mok.fingerprint == shown.strip().partition("=")[2].lower()

    def test_key_is_the_certificate_s(self, pristine):
        mok, _ = pristine
        public = openssl("pkey", "-in", mok.key_file, "-pubout")
        assert public == openssl("x509", "-inform", "DER", "-in", mok.certificate_file, "-noout", "-pubkey")

    def test_certificate_is_exported_as_der_and_pem(self, pristine):
        mok, _ = pristine
        assert mok.der == mok.certificate_file.read_bytes()
        assert mok.pem.decode() == openssl("x509", "-inform", "DER", "-in", mok.certificate_file)

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
    async def test_files_have_their_modes_whatever_the_umask(self, tmp_path, log, mask):
        moks = tmp_path / "ssl" / "server" / "moks"
        with umask(mask):
            mok = await create_mok(moks, log=log.logger, trial=no_trial)
        found = {path.name: path.stat().st_mode & 0o7777 for path in (mok.directory, *moks.rglob("*"))}
        assert found == {
            mok.fingerprint: 0o700,
            "signing_key.x509": 0o644,
            "signing_key.priv": 0o600,
            "x509.genkey": 0o644,
            ".lock": 0o600,
        }
        assert log.events == ["mok.generating", "mok.generated"]
        assert load_moks(moks).usable == (mok,)

    async def test_key_of_another_kind_has_to_pass_a_trial_first(self, tmp_path, log):
        kind = ml_dsa()
        tried = []

        async def trial(mok: Mok) -> None:
            tried.append(mok.key_file.read_bytes())
            assert list((tmp_path / "moks").glob("*:*")) == []

        mok = await create_mok(tmp_path / "moks", log=log.logger, kind=kind, trial=trial)
        assert tried == [mok.key_file.read_bytes()]
        assert log.entry("mok.generating")["kind"] == kind.value
        assert load_moks(tmp_path / "moks").usable == (mok,)
        assert mok.certificate.signature_hash_algorithm is None

    async def test_key_that_fails_its_trial_leaves_nothing(self, tmp_path, log):
        async def trial(_mok: Mok) -> None:
            raise unfit_for_kernel(Path("/tree/scripts/sign-file"), "At main.c:329:\nsign-file: CMS_final\n")

        store = MokStore(tmp_path / "moks", log.logger, kind=ml_dsa())
        with pytest.raises(IdentityError) as caught:
            await store.get_or_create(trial)
        assert str(caught.value) == (
            "/tree/scripts/sign-file: cannot sign with the kind of key that SYSTEMTAP_MOK_KEY_TYPE asks for"
            " (sign-file: CMS_final); ML-DSA wants OpenSSL 3.5 and the headers of Linux 7.0; use rsa"
        )
        assert names(tmp_path / "moks") == [".lock"]

    async def test_another_key_leaves_the_others_alone(self, moks, pristine, log):
        (moks / "x509.genkey").write_text("the operator's own")
        before = contents(moks)
        made = await create_mok(moks, log=log.logger, trial=no_trial)
        after = contents(moks)
        assert {name: after[name] for name in before} == before
        assert {mok.fingerprint for mok in load_moks(moks).usable} == {
            made.fingerprint,
            *(mok.fingerprint for mok in pristine),
        }

    @pytest.mark.parametrize("call", ["open", "os.fsync", "Path.rename"])
    async def test_full_disk_leaves_nothing(self, tmp_path, log, monkeypatch, call):
        def fail(*_arguments: object, **_options: object) -> None:
            raise OSError(28, "No space left on device")

        place = {"open": (os, "fdopen"), "os.fsync": (os, "fsync"), "Path.rename": (Path, "rename")}[call]
        moks = tmp_path / "moks"
        with monkeypatch.context() as patch:
            patch.setattr(*place, fail)
            with pytest.raises(IdentityError, match="No space left on device"):
                await create_mok(moks, log=log.logger, trial=no_trial)
        assert names(moks) == [".lock"]
        assert await create_mok(moks, log=log.logger, trial=no_trial) in load_moks(moks).usable

    async def test_leftovers_of_a_crash_are_removed(self, moks, log):
        left = moks / ".new-dead"
        left.mkdir()
        (left / "signing_key.priv").write_text("half a key")
        await create_mok(moks, log=log.logger, trial=no_trial)
        assert not left.exists()

    @needs_permissions
    async def test_forbidden(self, tmp_path, log):
        tmp_path.chmod(0o500)
        with pytest.raises(IdentityError) as caught:
            await create_mok(tmp_path / "moks", log=log.logger, trial=no_trial)
        tmp_path.chmod(0o700)
        assert "permission denied" in str(caught.value)
        assert caught.value.remedy is not None


def outline(text: str) -> list[str]:
    """Return what openssl shows of a certificate without what is new in each: numbers, bytes and dates."""
    text = re.sub(
        r"([0-9A-Fa-f]{2}:)+[0-9A-Fa-f]{0,2}$|Not (Before|After) *:.*", "", text, flags=re.MULTILINE
    )
    return [line.strip() for line in text.splitlines() if line.strip()]


def swap_keys(directory: Path) -> None:
    """Give it the other one's private key."""
    (other,) = (path for path in directory.parent.iterdir() if ":" in path.name and path != directory)
    shutil.copy(other / "signing_key.priv", directory / "signing_key.priv")


def encrypt(directory: Path) -> None:
    path = directory / "signing_key.priv"
    key = load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    )


def to_pem(directory: Path) -> None:
    openssl(
        *("x509", "-inform", "DER", "-in", directory / "signing_key.x509"),
        *("-out", directory / "signing_key.x509"),
    )


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no certificate": (
        lambda directory: (directory / "signing_key.x509").unlink(),
        "signing_key.x509 cannot be read (No such file or directory)",
    ),
    "no key": (
        lambda directory: (directory / "signing_key.priv").unlink(),
        "signing_key.priv cannot be read (No such file or directory)",
    ),
    "half a certificate": (
        lambda directory: os.truncate(directory / "signing_key.x509", 700),
        "signing_key.x509 holds no certificate in DER",
    ),
    "a certificate in PEM": (to_pem, "signing_key.x509 holds no certificate in DER"),
    "half a key": (
        lambda directory: os.truncate(directory / "signing_key.priv", 700),
        "signing_key.priv holds no private key in PEM without a password",
    ),
    "a key with a password": (encrypt, "signing_key.priv holds no private key in PEM without a password"),
    "another's key": (swap_keys, "signing_key.priv is not the key of signing_key.x509"),
    "a readable key": (
        lambda directory: (directory / "signing_key.priv").chmod(0o640),
        "signing_key.priv is open to others (mode 0640); chmod 600 ",
    ),
    "a writable directory": (
        lambda directory: directory.chmod(0o770),
        "others can write to it (mode 0770); chmod 700 ",
    ),
}


@quickly
class TestLoad:
    @pytest.mark.parametrize("defect", DEFECTS)
    async def test_unusable_key_is_reported_and_left_alone(self, moks, store, log, pristine, defect):
        bad, good = (moks / mok.fingerprint for mok in pristine)
        change, words = DEFECTS[defect]
        change(bad)
        before = contents(moks)

        for _ in range(3):
            assert await store.find([bad.name]) is None
            assert (await store.find([bad.name, good.name])).directory == good
            assert (await store.get_or_create(no_trial)).directory == good
        entry = log.entry("mok.unusable")
        assert entry["directory"] == str(bad)
        assert words in entry["reason"]
        assert entry["log_level"] == "warning"
        assert contents(moks) == before
        (error,) = load_moks(moks).unusable
        assert str(error).startswith(f"{bad}: ")
        assert [mok.directory for mok in load_moks(moks).usable] == [good]

    async def test_name_must_be_the_fingerprint(self, moks, store, log, pristine):
        mok, _ = pristine
        wrong = moks / mok.fingerprint.upper()
        (moks / mok.fingerprint).rename(wrong)
        assert await store.find([mok.fingerprint]) is None
        assert log.entry("mok.unusable")["reason"] == (
            f"its name is not the fingerprint of its certificate; rename it to {mok.fingerprint}"
        )

    @needs_permissions
    async def test_forbidden(self, moks, store, log, pristine):
        bad, good = (moks / mok.fingerprint for mok in pristine)
        bad.chmod(0)
        assert [mok.directory for mok in load_moks(moks).usable] == [good]
        assert (await store.get_or_create(no_trial)).directory == good
        bad.chmod(0o700)
        assert "Permission denied" in log.entry("mok.unusable")["reason"]

    @needs_permissions
    async def test_forbidden_directory_is_reported(self, moks, store, log):
        moks.chmod(0)
        assert await store.find(["00:11"]) is None
        moks.chmod(0o700)
        assert log.entry("mok.unusable")["directory"] == str(moks)

    def test_other_files_are_ignored(self, moks, pristine):
        (moks / "README").write_text("")
        (moks / ".new-half").mkdir()
        assert load_moks(moks).unusable == ()
        assert len(load_moks(moks).usable) == 2

    def test_missing_directory_has_no_keys(self, tmp_path):
        assert load_moks(tmp_path / "moks").usable == ()
        assert names(tmp_path) == []


@quickly
class TestStore:
    async def test_find_follows_the_client_s_order(self, store, pristine):
        first, second = (mok.fingerprint for mok in pristine)
        assert (await store.find(["00:11", second, first])).fingerprint == second
        assert (await store.find([first, second])).fingerprint == first
        assert await store.find([]) is None
        assert await store.find(["00:11"]) is None

    async def test_changed_keys_are_loaded_again(self, moks, store, log, pristine, tmp_path):
        mok = moks / pristine[0].fingerprint
        assert await store.find([mok.name]) is not None
        (mok / "signing_key.priv").chmod(0o644)
        assert await store.find([mok.name]) is None
        (mok / "signing_key.priv").chmod(0o600)
        assert await store.find([mok.name]) is not None
        mok.rename(tmp_path / "elsewhere")
        assert await store.find([mok.name]) is None
        (tmp_path / "elsewhere").rename(mok)
        assert await store.find([mok.name]) is not None
        assert log.events == ["mok.unusable"]

    async def test_key_is_made_where_there_is_none(self, tmp_path, log):
        store = MokStore(tmp_path / "moks", log.logger)
        assert await store.find(["00:11"]) is None
        assert names(tmp_path) == []
        made = await store.get_or_create(no_trial)
        assert await store.get_or_create(no_trial) == made
        assert await store.find([made.fingerprint]) == made
        assert log.events == ["mok.generating", "mok.generated"]

    async def test_existing_key_is_returned(self, moks, store, log, pristine):
        assert (await store.get_or_create(no_trial)).fingerprint == pristine[0].fingerprint
        assert log.events == []

    async def test_concurrent_makers_end_with_one(self, tmp_path, log):
        """Two servers of one process; the lock is the same between processes."""
        offered = []

        async def get_one(store: MokStore) -> None:
            offered.append(await store.get_or_create(no_trial))

        async with anyio.create_task_group() as tasks:
            for store in [MokStore(tmp_path / "moks", log.logger) for _ in range(2)]:
                for _ in range(2):
                    tasks.start_soon(get_one, store)
        assert len(offered) == 4
        assert len({mok.fingerprint for mok in offered}) == 1
        assert len(load_moks(tmp_path / "moks").usable) == 1

    async def test_key_that_cannot_be_made_is_an_error(self, log):
        with pytest.raises(IdentityError):
            await MokStore(Path("/dev/null/moks"), log.logger).get_or_create(no_trial)
