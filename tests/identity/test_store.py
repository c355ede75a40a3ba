"""The identities of one process: shared by directory, loaded again when they changed."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from kit.service import LogLines

from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import load_or_create_identity
from stapsrv.identity.nss import KEPT_FILES, Database
from stapsrv.identity.store import (
    IdentityStore,
    LiveIdentity,
    open_watcher,
    renewal_due,
)
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.directory_watcher import DirectoryWatcher

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_keys")]


@pytest.fixture
def watch() -> Iterator[DirectoryWatcher[Path]]:
    with open_watcher(None) as watch:
        assert watch is not None
        yield watch


@pytest.fixture
def store(tmp_path: Path, watch: DirectoryWatcher[Path]) -> IdentityStore:
    return IdentityStore({"SYSTEMTAP_DIR": str(tmp_path / "systemtap")}, watcher=watch)


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

    async def load() -> None:
        kept.append(await store.get(database, lines.log))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(load)
    assert kept[0] is kept[1] is kept[2]
    # Each server's log reports it all the same.
    assert lines.events().count("identity.found") == 3
    assert lines.events().count("identity.valid") == 3
    assert lines.events().count("trust.established") == 1


async def test_replaced_database_is_loaded_again(store, database, lines, tmp_path):
    live = await store.get(database, lines.log)
    before = live.loaded
    for name in ("cert9.db", "key4.db", "stap.cert"):
        (database / name).unlink()
    assert not live.is_current()
    assert (await store.get(database, lines.log)) is live
    assert live.loaded.serial != before.serial
    assert live.is_current()


async def test_default_directory_is_the_user_s_own(store, database, lines, tmp_path):
    shutil.copytree(database, tmp_path / "systemtap" / "ssl" / "server")
    kept = await store.get(None, lines.log)
    assert kept.loaded.directory == tmp_path / "systemtap" / "ssl" / "server"


async def test_failed_trust_does_not_stop_a_server(store, database, lines, tmp_path):
    (tmp_path / "systemtap").write_text("in the way")
    assert await store.get(database, lines.log)
    (reason,) = lines.reasons("trust.failed")
    assert "systemtap" in reason


async def test_directory_that_hangs_is_named(store, database, lines, tmp_path, monkeypatch):
    gate, clients = threading.Event(), tmp_path / "systemtap" / "ssl" / "client"

    def sweep(directory: Path) -> None:
        if directory == clients:
            gate.wait()

    monkeypatch.setattr("stapsrv.identity.store.remove_leftovers", sweep)
    store._files = BlockingCalls(timeout_s=0.2, grace_s=0.1)
    with pytest.raises(IdentityError) as caught:
        await store.get(database, lines.log)
    gate.set()
    assert str(caught.value).startswith(f"{clients}: its file system hangs")


async def test_staged_keys_of_a_killed_process_are_removed_at_the_next_start(
    store, database, lines, tmp_path
):
    for directory in (database, database / "moks", tmp_path / "systemtap" / "ssl" / "client"):
        (directory / ".new-dead").mkdir(parents=True)
        (directory / ".new-dead" / "key4.db").write_text("secret")
    await store.get(database, lines.log)
    assert list(tmp_path.rglob(".new-*")) == []


class Wall:
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def set_store(tmp_path: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch) -> IdentityStore:
    """A store whose clock is the test's, and which looks at it all the time."""
    monkeypatch.setattr("stapsrv.identity.store._CHECK_S", 0.01)
    monkeypatch.setattr("stapsrv.identity.store._PAUSE_S", 0.01)
    return IdentityStore({"SYSTEMTAP_DIR": str(tmp_path / "systemtap")}, clock=wall)


async def renewed(
    store: IdentityStore, live: LiveIdentity, lines: LogLines, act: Callable[[], Awaitable[None] | None]
) -> None:
    """Keep ``store`` fresh, act, and wait until the identity is another one."""
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.maintain, lines.log)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(live.wait_changed)
            await anyio.wait_all_tasks_blocked()
            if (acting := act()) is not None:
                await acting
            await live.wait_changed()
            tasks.cancel_scope.cancel()


async def test_renewed_a_month_before_it_expires(set_store, database, lines, wall, tmp_path):
    live = await set_store.get(database, lines.log)
    before = live.loaded
    due = before.not_after - timedelta(days=30)
    assert renewal_due(before) == due

    def go_there() -> None:
        wall.now = due

    await renewed(set_store, live, lines, go_there)
    after = live.loaded
    assert after.not_after == due.replace(microsecond=0) + timedelta(days=365)
    assert live.is_current()
    client = Database(tmp_path / "systemtap" / "ssl" / "client")
    trusted = await client.certificates("stap-server")
    # Answers signed by the old one are still about.
    assert {certificate.serial_number for certificate in trusted} == {
        before.certificate.serial_number,
        after.certificate.serial_number,
    }


async def test_expired_certificate_is_renewed_at_the_next_handshake(
    set_store, database, lines, wall, monkeypatch
):
    monkeypatch.setattr("stapsrv.identity.store._CHECK_S", 3600.0)
    monkeypatch.setattr("stapsrv.identity.store._MAX_DRIFT_S", 1e12)
    live = await set_store.get(database, lines.log)
    before = live.loaded

    async def meet() -> None:
        wall.now = before.not_after + timedelta(seconds=1)
        assert await live.current() is before

    await renewed(set_store, live, lines, meet)
    assert live.loaded.not_after > wall.now


@pytest.fixture(scope="module")
def pristine_databases(tmp_path_factory) -> list[Path]:
    """Two databases with a certificate each, made once."""
    places = [tmp_path_factory.mktemp("databases") / name for name in ("first", "second")]

    async def make() -> None:
        for place in places:
            await load_or_create_identity(place, log=LogLines().log)

    anyio.run(make)
    return places


@pytest.fixture
def databases(pristine_databases, tmp_path) -> list[Path]:
    """The test's own."""
    return [Path(shutil.copytree(place, tmp_path / place.name)) for place in pristine_databases]


def put(database: Path, source: Path) -> None:
    """Copy the files of a database over another's, one after the other."""
    for path in source.iterdir():
        shutil.copy(path, database / path.name)


async def test_connection_after_a_change_gets_the_new_identity(store, databases, database, lines):
    """At once, each time, and nothing is made of what is there in between."""
    live = await store.get(database, lines.log)
    ders = [(source / "stap.cert").read_bytes() for source in databases]
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.maintain, lines.log)
            generated = lines.events().count("identity.generating")
            for source, der in zip(databases, ders, strict=True):
                put(database, source)
                assert (await live.current()).der == der
            tasks.cancel_scope.cancel()
    assert lines.events().count("identity.generating") == generated


async def test_connection_after_a_directory_swap_gets_the_new_identity(
    store, databases, database, tmp_path, lines
):
    live = await store.get(database, lines.log)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.maintain, lines.log)
            for source in databases:
                der = (source / "stap.cert").read_bytes()
                database.rename(tmp_path / f"before {source.name}")
                source.rename(database)
                assert (await live.current()).der == der
            tasks.cancel_scope.cancel()


async def test_half_of_a_database_is_not_read(store, databases, database, lines, monkeypatch):
    """It would be taken for a damaged one, and another be made in its place."""
    monkeypatch.setattr("stapsrv.identity.store._SETTLE_S", 3600.0)
    monkeypatch.setattr("stapsrv.identity.store._MAX_SETTLE_S", 3600.0)
    monkeypatch.setattr("stapsrv.identity.store._CHECK_TIMEOUT_S", 0.5)
    live = await store.get(database, lines.log)
    before, source = live.loaded, databases[0]
    generated = lines.events().count("identity.generating")
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.maintain, lines.log)
            shutil.copy(source / "cert9.db", database / "cert9.db")
            assert await live.current() is before
            monkeypatch.setattr("stapsrv.identity.store._SETTLE_S", 0.01)
            tasks.start_soon(live.wait_changed)
            put(database, source)
            await live.wait_changed()
            tasks.cancel_scope.cancel()
    assert live.loaded.der == (source / "stap.cert").read_bytes()
    assert lines.events().count("identity.generating") == generated


async def test_connection_waits_for_the_next_check_after_a_change_during_one(store, database, lines):
    live = await store.get(database, lines.log)
    live.mark_changed()
    with live.checking():
        live.mark_changed()
    served = anyio.Event()

    async def connect() -> None:
        await live.current()
        served.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connect)
        await anyio.wait_all_tasks_blocked()
        assert not served.is_set()
        with live.checking():
            assert not served.is_set()
        await served.wait()


async def test_wait_of_a_connection_times_out(store, databases, database, lines, monkeypatch):
    """The file system hangs: the certificate of before will do."""
    gate = threading.Event()
    live = await store.get(database, lines.log)
    before = live.loaded

    def hang(_self: Database) -> None:
        gate.wait()

    monkeypatch.setattr("stapsrv.identity.store._CHECK_TIMEOUT_S", 0.01)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.maintain, lines.log)
            await anyio.wait_all_tasks_blocked()
            with monkeypatch.context() as patched:
                patched.setattr(Database, "fingerprint", hang)
                put(database, databases[0])
                assert await live.current() is before
                gate.set()
            await live.wait_changed()
            assert live.loaded.der == (databases[0] / "stap.cert").read_bytes()
            tasks.cancel_scope.cancel()


async def test_change_is_found_one_connection_later_without_a_watcher(
    set_store, databases, database, lines, monkeypatch
):
    monkeypatch.setattr("stapsrv.identity.store._CHECK_S", 3600.0)
    live = await set_store.get(database, lines.log)
    before = live.loaded

    async def meet() -> None:
        put(database, databases[0])
        assert await live.current() is before

    await renewed(set_store, live, lines, meet)
    assert (await live.current()).der == (databases[0] / "stap.cert").read_bytes()


async def test_replaced_database_is_loaded_while_serving(set_store, database, pristine_identity, lines):
    live = await set_store.get(database, lines.log)

    def replace() -> None:
        for name in ("cert9.db", "key4.db", "stap.cert"):
            (database / name).unlink()

    await renewed(set_store, live, lines, replace)
    assert live.is_current()


async def test_failed_renewal_leaves_the_old_one_in_service(set_store, database, lines, wall, monkeypatch):
    live = await set_store.get(database, lines.log)
    before = live.loaded

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stapsrv.identity.locked_directory.commit", full)
    wall.now = renewal_due(before)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(set_store.maintain, lines.log)
            await lines.wait("identity.renewal_failed", 2)
            tasks.cancel_scope.cancel()
    assert live.loaded is before
    assert live.is_current()
    assert "No space left" in lines.reasons("identity.renewal_failed")[0]


@pytest.mark.parametrize(
    "fault", [OSError(24, "Too many open files"), MemoryError(), ValueError("a fault of this program")]
)
async def test_crash_of_a_check_leaves_the_old_one_in_service(set_store, database, lines, monkeypatch, fault):
    live = await set_store.get(database, lines.log)
    before = live.loaded

    def fail(*_arguments: object) -> None:
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr("stapsrv.identity.certificate.Identity.context", property(fail))
        (database / "cert9.db").touch()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(set_store.maintain, lines.log)
            await lines.wait(
                "identity.renewal_failed" if isinstance(fault, OSError) else "identity.renewal_crashed"
            )
            assert live.loaded is before
            patched.undo()
            with anyio.fail_after(60):
                while not live.is_current():
                    await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()


async def test_clock_set_and_set_back_renews_nothing(set_store, database, lines, wall, monkeypatch):
    # The clock is to be set while the store waits, and set back before it looks again.
    monkeypatch.setattr("stapsrv.identity.store._CHECK_S", 1.0)
    live = await set_store.get(database, lines.log)
    # Not by current(): that has the store check at once.
    before, right = live.loaded, wall.now
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(set_store.maintain, lines.log)
            await anyio.wait_all_tasks_blocked()
            wall.now = right + timedelta(days=3650)
            await lines.wait("clock.jumped")
            wall.now = right
            await lines.wait("clock.jumped", 2)
            tasks.cancel_scope.cancel()
    assert live.loaded is before


async def test_password_is_for_new_databases_and_for_those_that_have_one(lines, tmp_path, database):
    environ = {"SYSTEMTAP_DIR": str(tmp_path / "systemtap")}
    own = tmp_path / "own"
    made = await IdentityStore(environ, password="correct horse").get(own, lines.log)
    again = await IdentityStore(environ, password="correct horse").get(own, lines.log)
    assert again.loaded.serial == made.loaded.serial
    with pytest.raises(IdentityError, match=r"protected by a password; give its password \(-P\)$"):
        await IdentityStore(environ).get(own, lines.log)
    with pytest.raises(IdentityError, match=r"the password is wrong; give its password \(-P\)$"):
        await IdentityStore(environ, password="battery staple").get(own, lines.log)
    assert await IdentityStore(environ, password="correct horse").get(database, lines.log)


async def test_renewal_keeps_the_password(set_store, lines, wall, tmp_path):
    own = tmp_path / "own"
    set_store._password = "correct horse"
    live = await set_store.get(own, lines.log)

    def go_there() -> None:
        wall.now = renewal_due(live.loaded)

    await renewed(set_store, live, lines, go_there)
    later = IdentityStore({"SYSTEMTAP_DIR": str(tmp_path / "systemtap")}, clock=wall)
    with pytest.raises(IdentityError, match="protected by a password"):
        await later.get(own, lines.log)


def test_host_without_free_watchers_leads_to_none_and_a_warning(monkeypatch):
    def fail(_self):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("stapsrv.system.inotify.Inotify.__init__", fail)
    lines = LogLines()
    with open_watcher(lines.log) as watcher, open_watcher(None) as another:
        assert (watcher, another) == (None, None)
    assert lines.reasons("identity.not_watched") == ["Too many open files"]


async def test_reading_a_database_by_nss_is_no_change(watch, pristine_identity, tmp_path):
    """Else each check would be followed by another one."""
    database = shutil.copytree(pristine_identity, tmp_path / "database")
    watch.watch_files(database, database, KEPT_FILES)
    before = Database(database).fingerprint()
    assert await Database(database).identities("stap-server")
    assert (watch.changed(), Database(database).fingerprint()) == (set(), before)
