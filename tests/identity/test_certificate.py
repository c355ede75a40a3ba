from __future__ import annotations

import hashlib
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from kit import openssl

from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import (
    NICKNAME,
    Identity,
    default_directory,
    load_or_create_identity,
)
from stapsrv.identity.nss import DATABASE_FILES, Database
from stapsrv.identity.selfsigned import make_certificate

from .conftest import (
    DAMAGES,
    Log,
    contents,
    locked,
    make_read_only,
    modes,
    names,
    needs_permissions,
    new_directory,
    set_mode,
    umask,
    write,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_keys")]


@pytest.fixture
def ready_key(another: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give new certificates a key that is there already."""
    monkeypatch.setattr(rsa, "generate_private_key", lambda **_kwargs: another.key)


quickly = pytest.mark.usefixtures("ready_key")
FRESH_MODES = {".": 0o755, **dict.fromkeys(DATABASE_FILES, 0o600), "stap.cert": 0o644}
FOUND = ["identity.found", "identity.not_before", "identity.not_after"]


class TestIdentity:
    def test_validity_follows_the_dates(self, made: Identity):
        second = timedelta(seconds=1)
        assert made.not_before.tzinfo == made.not_after.tzinfo == UTC
        assert not made.is_valid(made.not_before - second)
        assert made.is_valid(made.not_before)
        assert made.is_valid(made.not_after)
        assert not made.is_valid(made.not_after + second)

    @pytest.mark.parametrize(
        ("number", "shown"),
        [(1, "01"), (0x7F, "7f"), (0xCC1D3033, "00:cc:1d:30:33"), (0x1CC1D3033, "01:cc:1d:30:33")],
    )
    def test_serial_number_is_written_as_clients_see_it(self, made: Identity, number: int, shown: str):
        certificate = self_signed(ec.generate_private_key(ec.SECP256R1()), serial=number)
        assert attrs.evolve(made, certificate=certificate).serial == shown

    def test_fingerprint_is_written_as_openssl_does(self, made: Identity):
        digest = hashlib.sha256(made.der).hexdigest().upper()
        assert made.sha256 == ":".join(digest[at : at + 2] for at in range(0, 64, 2))

    def test_key_is_not_in_the_representation(self, made: Identity):
        assert "key" not in repr(made)

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_handshake_succeeds(self, made: Identity, version: ssl.TLSVersion):
        client = client_context(version)
        assert handshake(made.context, client) == made.der

    def test_old_tls_is_refused(self, made: Identity):
        context = made.context
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.maximum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_NONE

    def test_key_reaches_tls_through_memory(self, made: Identity, monkeypatch: pytest.MonkeyPatch):
        chains: list[tuple[str, str]] = []

        def load(context: ssl.SSLContext, certfile: str) -> None:
            chains.append((certfile, str(Path(certfile).readlink())))

        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
        assert attrs.evolve(made).context
        ((path, leads_to),) = chains
        assert path.startswith("/proc/self/fd/")
        assert leads_to.startswith("/memfd:")


def self_signed(key: ec.EllipticCurvePrivateKey, *, serial: int = 1) -> x509.Certificate:
    """A certificate that is none of ours."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "www")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """Shake hands in memory; return the certificate that the client saw."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    while waiting:
        for end in tuple(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    return ends[0].getpeercert(binary_form=True)


class TestDefaultDirectory:
    def test_systemtap_dir_comes_first(self):
        environ = {"SYSTEMTAP_DIR": "/data", "HOME": "/home/me"}
        assert default_directory(environ) == Path("/data/ssl/server")

    @pytest.mark.parametrize("environ", [{"HOME": "/home/me"}, {"HOME": "/home/me", "SYSTEMTAP_DIR": ""}])
    def test_home_is_used_without_systemtap_dir(self, environ: dict[str, str]):
        assert default_directory(environ) == Path("/home/me/.systemtap/ssl/server")

    def test_account_s_home_is_used_without_home(self):
        assert default_directory({}).is_absolute()


class TestLoad:
    async def test_valid_identity_is_loaded(self, identity: Identity, log: Log):
        before = contents(identity.directory)
        loaded = await load_or_create_identity(identity.directory, log=log.logger)
        assert loaded == identity
        assert loaded.key.private_numbers() == identity.key.private_numbers()
        assert contents(identity.directory) == before
        assert log.events == [*FOUND, "identity.valid"]
        assert log.entry("identity.found")["directory"] == identity.directory
        assert log.entry("identity.not_before")["when"] == identity.not_before
        assert log.entry("identity.not_after")["when"] == identity.not_after

    @quickly
    async def test_youngest_of_several_generations_is_loaded(self, identity: Identity, log: Log):
        later = make_certificate("vm", identity.not_before + timedelta(days=1))
        await Database(identity.directory).import_identity(*later, NICKNAME, "PCu,,PCu")
        now = identity.not_before + timedelta(days=2)
        assert (
            await load_or_create_identity(identity.directory, log=log.logger, now=now)
        ).certificate == later[0]

    @needs_permissions
    async def test_read_only_directory_is_read(self, identity: Identity, log: Log):
        make_read_only(identity.directory)
        assert await load_or_create_identity(identity.directory, log=log.logger) == identity

    async def test_dbm_files_beside_a_current_database_are_ignored(self, identity: Identity, log: Log):
        write(identity.directory / "cert8.db", "left by an upgrade")
        assert await load_or_create_identity(identity.directory, log=log.logger) == identity


@quickly
class TestCreate:
    @pytest.mark.parametrize("mask", [0o000, 0o077])
    async def test_missing_identity_is_made(self, tmp_path: Path, log: Log, mask: int):
        directory = tmp_path / "state" / "ssl" / "server"
        now = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
        with umask(mask):
            identity = await load_or_create_identity(directory, log=log.logger, now=now)
        assert log.events == ["identity.missing", "identity.generating"]
        assert log.entry("identity.generating") == {
            "event": "identity.generating",
            "log_level": "info",
            "directory": directory,
        }
        assert identity.not_before == now
        assert modes(directory) == FRESH_MODES
        assert names(directory) == sorted([".lock", *FRESH_MODES.keys() - {"."}])
        assert contents(directory)["stap.cert"] == identity.der
        assert await Database(directory).listing() == [(NICKNAME, "CPu,u,Cu")]

    async def test_empty_directory_keeps_its_mode(self, tmp_path: Path, log: Log):
        set_mode(tmp_path, 0o700)
        identity = await load_or_create_identity(tmp_path, log=log.logger)
        assert modes(tmp_path) == {**FRESH_MODES, ".": 0o700}
        assert identity.directory == tmp_path

    async def test_link_to_the_directory_is_followed(self, tmp_path: Path, log: Log):
        new_directory(tmp_path / "elsewhere")
        (tmp_path / "link").symlink_to("elsewhere")
        await load_or_create_identity(tmp_path / "link", log=log.logger)
        assert "cert9.db" in names(tmp_path / "elsewhere")

    async def test_password_protects_a_new_database(self, tmp_path: Path, log: Log):
        await load_or_create_identity(tmp_path, log=log.logger, password="open sesame")
        before = contents(tmp_path)
        with pytest.raises(IdentityError, match="the database is protected by a password; give its password"):
            await load_or_create_identity(tmp_path, log=log.logger)
        assert contents(tmp_path) == before


@quickly
class TestReplace:
    @pytest.mark.parametrize(
        ("event", "date", "off"),
        [
            ("identity.expired", "not_after", timedelta(seconds=1)),
            ("identity.not_yet_valid", "not_before", timedelta(seconds=-1)),
        ],
    )
    async def test_identity_that_is_not_valid_now_is_replaced(
        self, identity: Identity, log: Log, event: str, date: str, off: timedelta
    ):
        when: datetime = getattr(identity, date)
        new_directory(identity.directory / "moks")
        write(identity.directory / "moks" / "signing_key.priv", "the operator's")
        fresh = await load_or_create_identity(identity.directory, log=log.logger, now=when + off)
        assert log.events == [*FOUND, event, "identity.generating"]
        assert log.entry(event) == {"event": event, "log_level": "warning", "when": when}
        assert fresh.certificate != identity.certificate
        assert fresh.not_before == when + off
        assert modes(identity.directory) == FRESH_MODES
        assert contents(identity.directory)["moks/signing_key.priv"] == b"the operator's"
        assert contents(identity.directory)["stap.cert"] == fresh.der

    @pytest.mark.parametrize("damage", ["truncate cert9.db", "unlink key4.db"])
    async def test_damaged_database_is_replaced(self, identity: Identity, log: Log, damage: str):
        DAMAGES[damage](identity.directory)
        fresh = await load_or_create_identity(identity.directory, log=log.logger)
        assert log.events == ["identity.unusable", "identity.generating"]
        assert log.entry("identity.unusable")["log_level"] == "warning"
        assert log.entry("identity.unusable")["reason"].startswith(f"{damage.split()[1]} is ")
        assert fresh != identity
        assert await load_or_create_identity(identity.directory, log=Log().logger) == fresh

    async def test_certificate_without_its_key_is_replaced(
        self, identity: Identity, log: Log, tmp_path: Path
    ):
        keyless = Database(new_directory(tmp_path / "keyless"))
        await keyless.create()
        await keyless.import_certificate(identity.certificate, NICKNAME, "P,P,P")
        fresh = await load_or_create_identity(keyless.directory, log=log.logger)
        assert log.entry("identity.unusable")["reason"] == (
            "no certificate stap-server with its private key in the database"
        )
        assert fresh != identity

    async def test_interrupted_change_is_finished_first(
        self, identity: Identity, another: Identity, log: Log
    ):
        """What a commit left half done is finished: the identity is the one that it was about to be."""
        ready = new_directory(identity.directory / ".ready")
        for name, content in contents(another.directory).items():
            write(ready / name, content)
        loaded = await load_or_create_identity(identity.directory, log=log.logger)
        assert loaded.certificate == another.certificate
        assert contents(identity.directory) == contents(another.directory)
        assert log.events == [*FOUND, "identity.valid"]


@quickly
class TestRefuse:
    @pytest.mark.parametrize("name", ["cert8.db", "key3.db", "pw"])
    async def test_obsolete_database_is_refused(self, tmp_path: Path, log: Log, name: str):
        write(tmp_path / name, "old")
        with pytest.raises(IdentityError) as caught:
            await load_or_create_identity(tmp_path, log=log.logger)
        assert str(caught.value) == (
            f"{tmp_path}: {name} belongs to an obsolete certificate database; "
            "move the directory away, and the next start makes a new one, or name another with --ssl"
        )
        assert names(tmp_path) == [name]

    async def test_obsolete_password_file_is_refused(self, identity: Identity, log: Log):
        write(identity.directory / "pw", "old")
        with pytest.raises(IdentityError, match="pw belongs to an obsolete"):
            await load_or_create_identity(identity.directory, log=log.logger)

    async def test_locked_database_is_refused(self, identity: Identity, log: Log):
        before = contents(identity.directory)
        with locked(identity.directory / "cert9.db"), pytest.raises(IdentityError, match="is locked"):
            await load_or_create_identity(identity.directory, log=log.logger)
        assert contents(identity.directory) == before

    async def test_other_certificates_are_not_lost(self, identity: Identity, log: Log):
        database = Database(identity.directory)
        await database.import_certificate(self_signed(ec.generate_private_key(ec.SECP256R1())), "www", "P,,")
        before = contents(identity.directory)
        with pytest.raises(IdentityError, match="a new identity would replace other certificates too: www;"):
            await load_or_create_identity(
                identity.directory, log=log.logger, now=identity.not_after + timedelta(days=1)
            )
        assert contents(identity.directory) == before

    async def test_key_that_is_not_rsa_is_refused(self, tmp_path: Path, log: Log):
        database = Database(tmp_path)
        await database.create()
        key = ec.generate_private_key(ec.SECP256R1())
        await database.import_identity(self_signed(key), key, NICKNAME, "PCu,,PCu")  # type: ignore[arg-type]
        before = contents(tmp_path)
        with pytest.raises(IdentityError, match="is not an RSA key"):
            await load_or_create_identity(tmp_path, log=log.logger)
        assert contents(tmp_path) == before

    @needs_permissions
    @pytest.mark.parametrize("mode", [0o000, 0o500])
    async def test_forbidden_directory_is_refused(self, tmp_path: Path, log: Log, mode: int):
        set_mode(tmp_path, mode)
        with pytest.raises(IdentityError, match=r"permission denied on .*; let user .* read and write it"):
            await load_or_create_identity(tmp_path, log=log.logger)
        set_mode(tmp_path, 0o700)
        assert names(tmp_path) == []
        assert "identity.generating" not in log.events

    @needs_permissions
    async def test_forbidden_database_is_refused(self, identity: Identity, log: Log):
        before = contents(identity.directory)
        set_mode(identity.directory / "key4.db", 0)
        with pytest.raises(IdentityError, match=r"permission denied on .*key4\.db"):
            await load_or_create_identity(identity.directory, log=log.logger)
        set_mode(identity.directory / "key4.db", 0o600)
        assert contents(identity.directory) == before

    async def test_file_in_place_of_the_directory_is_refused(self, tmp_path: Path, log: Log):
        write(tmp_path / "server", "")
        with pytest.raises(IdentityError, match="server: "):
            await load_or_create_identity(tmp_path / "server", log=log.logger)

    async def test_missing_tools_are_an_error(
        self, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(IdentityError, match="install NSS's tools"):
            await load_or_create_identity(tmp_path, log=log.logger)
        assert names(tmp_path) == [".lock"]


class TestConcurrently:
    async def test_tasks_end_with_one_identity(self, tmp_path: Path):
        logs = [Log() for _ in range(3)]
        found: list[Identity] = []

        async def start(log: Log) -> None:
            found.append(await load_or_create_identity(tmp_path / "server", log=log.logger))

        async with anyio.create_task_group() as tasks:
            for log in logs:
                tasks.start_soon(start, log)
        assert len({identity.serial for identity in found}) == 1
        assert sum("identity.generating" in log.events for log in logs) == 1

    async def test_processes_end_with_one_identity(self, tmp_path: Path, anyio_backend_name: str):
        script = (
            "import sys, anyio, structlog\n"
            "from pathlib import Path\n"
            "from stapsrv.identity.certificate import load_or_create_identity\n"
            "log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))\n"
            "async def main():\n"
            "    print((await load_or_create_identity(Path(sys.argv[1]), log=log)).serial)\n"
            "anyio.run(main, backend=sys.argv[2])\n"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "server"), anyio_backend_name]
        serials: list[bytes] = []

        async def start() -> None:
            serials.append((await anyio.run_process(command, stderr=subprocess.PIPE)).stdout)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            tasks.start_soon(start)
        assert len(serials) == 2
        assert len(set(serials)) == 1


async def test_cancellation_leaves_nothing_behind(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch):
    """Cancelled while the new database is being filled."""
    with anyio.CancelScope() as scope:

        async def hang(*_args: object) -> None:
            scope.cancel()
            await anyio.sleep_forever()

        monkeypatch.setattr(Database, "import_identity", hang)
        await load_or_create_identity(tmp_path, log=log.logger)
    assert scope.cancelled_caught
    assert names(tmp_path) == [".lock"]


class TestSignature:
    @pytest.mark.parametrize(
        "module", [b"", b"module\n", bytes(range(256)) * 1000], ids=["empty", "short", "long"]
    )
    def test_is_verified_by_openssl(self, made: Identity, module: bytes):
        signature = made.sign(module)
        assert len(signature) == made.key.key_size // 8
        assert signature == made.sign(module)
        assert openssl.verifies(certificate=made.der, data=module, signature=signature)
        spoilt = signature[:-1] + bytes([signature[-1] ^ 1])
        assert not openssl.verifies(certificate=made.der, data=module, signature=spoilt)
        assert not openssl.verifies(certificate=made.der, data=module + b"\0", signature=signature)

    def test_is_not_verified_with_another_certificate(self, made: Identity, another: Identity):
        assert not openssl.verifies(certificate=another.der, data=b"module", signature=made.sign(b"module"))
