"""The identities of one process: servers that share a database directory share what is in it."""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import anyio
import attrs
from structlog.typing import FilteringBoundLogger

from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import (
    Identity,
    Validity,
    default_directory,
    load_or_create_identity,
    renew_identity,
    report_identity,
)
from stapsrv.identity.locked_directory import sweep_left_over
from stapsrv.identity.mok import moks_directory
from stapsrv.identity.nss import KEPT_FILES, Database, WrongPassword
from stapsrv.identity.signing import sign_module
from stapsrv.identity.trust import default_client_directory, trust_locally
from stapsrv.system import inotify
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.directory_watcher import DirectoryWatcher

RENEW_BEFORE = timedelta(days=30)
_CHECK_S = 60.0
"""Between looks at the clock; a handshake that meets a stale identity has it looked after at once."""
_PAUSE_S = 1.0
_SETTLE_S = 0.2
"""A database comes in several files: this long after the last change it is looked at."""
_MOST_SETTLE_S = 2.0
_PATIENCE_S = 5.0
"""How long a connection waits for the look at a database that has changed."""
_DRIFT_S = 3600.0

Clock = Callable[[], datetime]


@attrs.frozen
class KeptIdentity:
    """An identity and what is derived from it once for all servers that have it.

    Attributes:
        identity: certificate and key.
        context: the server's side of TLS with them.
    """

    identity: Identity
    context: ssl.SSLContext = attrs.field(repr=False, eq=False)

    @property
    def not_after(self) -> datetime:
        """The end of the certificate's validity."""
        return self.identity.not_after

    def sign(self, module: bytes) -> bytes:
        """Return the signature of a module by the certificate's key; takes some milliseconds."""
        return sign_module(self.identity.key, module)


class LiveIdentity:
    """Who the servers of one database directory are, at each moment.

    Args:
        kept: what was loaded.
        clock: tells the aware time.
        attend: has the store look soon whether that is still what it should have, and says here, by
            :meth:`note_change`, whether the database is known to have changed.

    Attributes:
        kept: what was loaded last.
    """

    def __init__(self, kept: KeptIdentity, *, clock: Clock, attend: Callable[[], None]) -> None:
        self.kept = kept
        self._clock = clock
        self._attend = attend
        self._changes = 0
        self._changes_looked_at = 0
        self._look_ended = anyio.Event()
        self._changed = anyio.Event()

    async def current(self) -> KeptIdentity:
        """Return the identity for a new connection; touches no file, which could take long.

        If the database was changed before the call, what a look finds there is waited for, 5 s at most. A
        change of which the kernel does not tell is found for the next connection.
        """
        self._attend()
        if self._changes_looked_at < self._changes:
            with anyio.move_on_after(_PATIENCE_S):
                await self._wait_looked_at(self._changes)
        return self.kept

    async def _wait_looked_at(self, changes: int) -> None:
        while self._changes_looked_at < changes:
            await self._look_ended.wait()

    def note_change(self) -> None:
        """Take note that the database has changed."""
        self._changes += 1

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """Look at the database, and load what is there; whoever waits for that goes on afterwards."""
        changes = self._changes
        try:
            yield
        finally:
            self._changes_looked_at = changes
            self._look_ended.set()
            self._look_ended = anyio.Event()

    def is_current(self) -> bool:
        """Whether the certificate is valid now, and its database is the one that it was loaded from."""
        identity = self.kept.identity
        return (
            identity.validity(self._clock()) is Validity.VALID
            and Database(identity.directory).fingerprint() == identity.fingerprint
        )

    async def wait_changed(self) -> None:
        """Wait until another identity takes the place of this one."""
        await self._changed.wait()

    def replace(self, kept: KeptIdentity) -> None:
        """Take ``kept`` for every connection from now on."""
        is_new = kept.identity.certificate != self.kept.identity.certificate
        self.kept = kept
        if is_new:
            self._changed.set()
            self._changed = anyio.Event()


class IdentityStore:
    """Loads each database directory once, renews what is in it, and loads it again when it was replaced.

    Args:
        environ: names the default directories (``SYSTEMTAP_DIR``, ``HOME``).
        password: of the databases that have one, and of new ones; None for none.
        clock: tells the aware time.
        watch: hears of changes; without it they are met a connection later. Its owner closes it.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        password: str | None = None,
        clock: Clock = lambda: datetime.now(UTC),
        watch: DirectoryWatcher[Path] | None = None,
    ) -> None:
        self._environ = environ
        self._password = password
        self._passwords: dict[Path, str] = {}
        self._clock = clock
        self._live: dict[Path, LiveIdentity] = {}
        self._files = BlockingCalls()
        self._working = anyio.Lock()
        self._watch = watch
        self._heard = anyio.Event()
        self._met = anyio.Event()

    async def obtain(self, directory: Path | None, log: FilteringBoundLogger) -> LiveIdentity:
        """Return who a server with its database in ``directory`` is, and make the local client trust it.

        Args:
            directory: the database directory, or None for the user's own.
            log: of the server that asks.

        Raises:
            IdentityError: there is no identity, and none could be made.
        """
        directory = directory or default_directory(self._environ)
        async with self._working:
            live = self._live.get(directory)
            if live is not None and await self._is_current(directory, live):
                report_identity(live.kept.identity, log=log, now=self._clock())
                return live
            kept = await self._load(directory, log)
            if live is None:
                live = LiveIdentity(kept, clock=self._clock, attend=self._attend)
                self._live[directory] = live
            else:
                live.replace(kept)
            return live

    async def keep_fresh(self, log: FilteringBoundLogger) -> None:
        """Renew certificates before they expire, and take up databases that were replaced, until cancelled.

        A failure leaves the old identity in service, and is logged and tried again.
        """
        async with anyio.create_task_group() as tasks:
            if self._watch is not None:
                tasks.start_soon(self._listen, self._watch)
            await self._look_after_all(log)

    async def _listen(self, watch: DirectoryWatcher[Path]) -> NoReturn:
        while True:
            await anyio.wait_readable(watch.descriptor)
            self._hear()

    async def _look_after_all(self, log: FilteringBoundLogger) -> NoReturn:
        seen = _Clocks(self._clock())
        while True:
            with anyio.move_on_after(_CHECK_S):
                await self._met.wait()
            await self._settle()
            self._met = anyio.Event()
            if seen.jumped(self._clock()):
                # A clock that is set back soon must not cost a certificate that was valid all the time.
                log.warning("clock.jumped")
                await anyio.sleep(_CHECK_S)
            for directory, live in list(self._live.items()):
                async with self._working:
                    await self._freshen(directory, live, log)
            # Whatever keeps failing does so once a second at the most, however many peers connect.
            with anyio.move_on_after(_PAUSE_S):
                await self._heard.wait()

    async def _settle(self) -> None:
        """Let whoever changes a database finish."""
        with anyio.move_on_after(_MOST_SETTLE_S):
            while self._heard.is_set():
                self._heard = anyio.Event()
                with anyio.move_on_after(_SETTLE_S):
                    await self._heard.wait()

    def _attend(self) -> None:
        self._hear()
        self._met.set()

    def _hear(self) -> None:
        """Take note of the changes up to now."""
        changed = self._watch.changed() if self._watch is not None else frozenset[Path]()
        # None: events were lost, and every database may have changed.
        for directory in list(self._live) if changed is None else changed:
            if (live := self._live.get(directory)) is not None:
                live.note_change()
                self._heard.set()
                self._met.set()

    async def _freshen(self, directory: Path, live: LiveIdentity, log: FilteringBoundLogger) -> None:
        with live.looked_at():
            await self._look_after(directory, live, log)

    async def _look_after(self, directory: Path, live: LiveIdentity, log: FilteringBoundLogger) -> None:
        identity = live.kept.identity
        try:
            if not await self._is_current(directory, live):
                live.replace(await self._load(directory, log))
            elif self._clock() >= renewal_due(identity):
                log.info("identity.renewing", when=identity.not_after)
                password = self._passwords.get(directory, "")
                renewed = await renew_identity(identity, log=log, password=password, now=self._clock())
                await self._trust(renewed, log)
                live.replace(KeptIdentity(renewed, renewed.tls_context()))
        except (IdentityError, OSError) as exc:
            log.warning("identity.renewal_failed", directory=directory, reason=exc)
        except Exception:
            # The old identity serves on, and so does everything else here.
            log.exception("identity.renewal_crashed", directory=directory)

    async def _is_current(self, directory: Path, live: LiveIdentity) -> bool:
        with _hangs_explained(directory):
            await self._files.run(functools.partial(self._arm, directory))
            return await self._files.run(live.is_current)

    def _arm(self, directory: Path) -> None:
        """Have changes of a directory heard of from now on; else clients and the clock lead to them."""
        if self._watch is not None:
            with contextlib.suppress(OSError):
                self._watch.watch_files(directory, directory, KEPT_FILES)

    async def _load(self, directory: Path, log: FilteringBoundLogger) -> KeptIdentity:
        changed = (directory, moks_directory(directory), default_client_directory(self._environ))
        # Looked at in a thread before anything is done: a directory that hangs is met here.
        for place in changed:
            with _hangs_explained(place):
                await self._files.run(functools.partial(sweep_left_over, place))
        identity = await self._open(directory, log)
        await self._trust(identity, log)
        with _hangs_explained(directory):
            await self._files.run(functools.partial(self._arm, directory))
        return KeptIdentity(identity, identity.tls_context())

    async def _open(self, directory: Path, log: FilteringBoundLogger) -> Identity:
        """Load or make an identity, with the password only where it is one of the database's."""
        passwords = [""] if self._password is None else ["", self._password]
        if self._password is not None and not Database(directory).exists:
            passwords = [self._password]
        for password in passwords:
            self._passwords[directory] = password
            try:
                return await load_or_create_identity(directory, log=log, password=password, now=self._clock())
            except WrongPassword:
                if password == passwords[-1]:
                    raise
        raise AssertionError("one of the passwords was the last")

    async def _trust(self, identity: Identity, log: FilteringBoundLogger) -> None:
        directory = default_client_directory(self._environ)
        try:
            await trust_locally(identity, directory, log=log)
        except IdentityError as exc:
            # Clients elsewhere are served all the same.
            log.warning("trust.failed", directory=directory, reason=exc)


def database_watcher() -> DirectoryWatcher[Path]:
    """Return a watcher for databases: pk12util opens one for writing only to read it, which is no change."""
    return DirectoryWatcher(inotify.WRITE)


@contextlib.contextmanager
def open_watcher(log: FilteringBoundLogger | None) -> Iterator[DirectoryWatcher[Path] | None]:
    """Hold a watcher for a store; None, and a line in the log, where this host allows no more of them."""
    try:
        watcher = database_watcher()
    except OSError as exc:
        if log is not None:
            log.warning("identity.unheard", reason=exc.strerror)
        yield None
        return
    with contextlib.closing(watcher):
        yield watcher


@contextlib.contextmanager
def _hangs_explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except TimeoutError as exc:
        raise IdentityError(
            f"its file system hangs: {exc.strerror}", where=str(directory), remedy="mend that, and try again"
        ) from exc


def renewal_due(identity: Identity) -> datetime:
    """Return when an identity is to be renewed: a month before it expires, or in its last third."""
    lifetime = identity.not_after - identity.not_before
    return identity.not_after - min(RENEW_BEFORE, lifetime / 3)


class _Clocks:
    """Notices when the wall clock goes another way than time itself."""

    def __init__(self, wall: datetime) -> None:
        self._wall = wall
        self._steady = anyio.current_time()

    def jumped(self, wall: datetime) -> bool:
        """Whether the wall clock was set by more than can be drift since the last call."""
        steady = anyio.current_time()
        drift = (wall - self._wall).total_seconds() - (steady - self._steady)
        self._wall, self._steady = wall, steady
        return abs(drift) > _DRIFT_S
