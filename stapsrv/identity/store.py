"""The identities of one process, shared by the servers with the same database directory, and kept current."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import anyio
from structlog.typing import FilteringBoundLogger

from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import (
    Identity,
    default_directory,
    load_or_create_identity,
    renew_identity,
    report_identity,
)
from stapsrv.identity.locked_directory import remove_leftovers
from stapsrv.identity.mok import moks_directory
from stapsrv.identity.nss import KEPT_FILES, Database, WrongPassword
from stapsrv.identity.trust import authorize, default_client_directory
from stapsrv.system import inotify
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.directory_watcher import DirectoryWatcher
from stapsrv.system.readiness import wait_readable

RENEW_BEFORE = timedelta(days=30)
# Between checks of the clock; a connection has everything checked at once.
_CHECK_S = 60.0
_PAUSE_S = 1.0
# A database comes in several files: it is read this long after the last change.
_SETTLE_S = 0.2
_MAX_SETTLE_S = 2.0
# How long a connection waits for a changed database to be read.
_CHECK_TIMEOUT_S = 5.0
_MAX_DRIFT_S = 3600.0

Clock = Callable[[], datetime]
_T = TypeVar("_T")


class LiveIdentity:
    """The current identity of one database directory's servers.

    ``request_check`` has the store check it soon, after :meth:`mark_changed` if the database is known to have
    changed.
    """

    def __init__(self, loaded: Identity, *, clock: Clock, request_check: Callable[[], None]) -> None:
        self.loaded = loaded
        self._clock = clock
        self._request_check = request_check
        self._changes = 0
        self._changes_checked = 0
        self._check_ended = anyio.Event()
        self._changed = anyio.Event()

    async def current(self) -> Identity:
        """Return the identity for a new connection.

        After a change of the database that the kernel reported, this waits until it is read, 5 s at most.
        """
        # No file is read here, which could take long. A change that the kernel does not report, as in a
        # network file system, is found for the next connection.
        self._request_check()
        changes = self._changes
        with anyio.move_on_after(_CHECK_TIMEOUT_S):
            while self._changes_checked < changes:
                await self._check_ended.wait()
        return self.loaded

    def mark_changed(self) -> None:
        """Have the next :meth:`current` wait for a check: the database has changed."""
        self._changes += 1

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        """Let waiting connections go on when the block, which checks the database, ends."""
        changes = self._changes
        try:
            yield
        finally:
            self._changes_checked = changes
            self._check_ended.set()
            self._check_ended = anyio.Event()

    def is_current(self) -> bool:
        """Whether the certificate is valid now, and its database has not changed since it was loaded."""
        fingerprint = Database(self.loaded.directory).fingerprint()
        return self.loaded.is_valid(self._clock()) and fingerprint == self.loaded.fingerprint

    async def wait_changed(self) -> None:
        """Wait until another certificate replaces this one."""
        await self._changed.wait()

    def replace(self, loaded: Identity) -> None:
        """Serve ``loaded`` to every connection from now on."""
        is_new = loaded.certificate != self.loaded.certificate
        self.loaded = loaded
        if is_new:
            self._changed.set()
            self._changed = anyio.Event()


class IdentityStore:
    """Loads each database directory once, renews its certificate, and loads it again when it was replaced.

    ``environ`` names the default directories. ``password`` is that of the databases that have one, and of new
    ones. ``clock`` tells the aware time. Without ``watcher`` (:func:`open_watcher`), which its owner closes,
    changes are found one connection later.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        password: str | None = None,
        clock: Clock = lambda: datetime.now(UTC),
        watcher: DirectoryWatcher[Path] | None = None,
    ) -> None:
        self._environ = environ
        self._password = password
        self._passwords: dict[Path, str] = {}
        self._clock = clock
        self._live: dict[Path, LiveIdentity] = {}
        self._files = BlockingCalls()
        self._lock = anyio.Lock()
        self._watcher = watcher
        self._file_changed = anyio.Event()
        self._check_wanted = anyio.Event()

    async def get(self, directory: Path | None, log: FilteringBoundLogger) -> LiveIdentity:
        """Return the identity of servers with their database in ``directory``, None for the user's own.

        The user's own client trusts it from then on. It is reported in ``log``, the server's.

        Raises:
            IdentityError: there is no identity, and none could be made.
        """
        directory = directory or default_directory(self._environ)
        async with self._lock:
            live = self._live.get(directory)
            if live is not None and await self._is_current(directory, live):
                report_identity(live.loaded, log=log, now=self._clock())
                return live
            loaded = await self._load(directory, log)
            if live is None:
                live = LiveIdentity(loaded, clock=self._clock, request_check=self._request_check)
                self._live[directory] = live
            else:
                live.replace(loaded)
            return live

    async def maintain(self, log: FilteringBoundLogger) -> None:
        """Renew certificates before they expire, and load databases that were replaced, until cancelled.

        After a failure, which is logged, the old identity serves on, and it is tried again.
        """
        async with anyio.create_task_group() as tasks:
            if self._watcher is not None:
                tasks.start_soon(self._listen, self._watcher)
            await self._check_all(log)

    async def _listen(self, watcher: DirectoryWatcher[Path]) -> NoReturn:
        while True:
            await wait_readable(watcher.descriptor)
            self._take_changes()

    async def _check_all(self, log: FilteringBoundLogger) -> NoReturn:
        offset = self._clock_offset_s()
        while True:
            with anyio.move_on_after(_CHECK_S):
                await self._check_wanted.wait()
            await self._wait_settled()
            self._check_wanted = anyio.Event()
            before, offset = offset, self._clock_offset_s()
            if abs(offset - before) > _MAX_DRIFT_S:
                # A clock that is set back soon must not cost a certificate that was valid all the time.
                log.warning("clock.jumped")
                await anyio.sleep(_CHECK_S)
            for directory, live in list(self._live.items()):
                async with self._lock:
                    with live.checking():
                        await self._refresh(directory, live, log)
            # A check that keeps failing runs once a second at the most, however many peers connect.
            with anyio.move_on_after(_PAUSE_S):
                await self._file_changed.wait()

    def _clock_offset_s(self) -> float:
        """Return how far the wall clock is ahead of the event loop's, which nobody sets."""
        return self._clock().timestamp() - anyio.current_time()

    async def _wait_settled(self) -> None:
        with anyio.move_on_after(_MAX_SETTLE_S):
            while self._file_changed.is_set():
                self._file_changed = anyio.Event()
                with anyio.move_on_after(_SETTLE_S):
                    await self._file_changed.wait()

    def _request_check(self) -> None:
        self._take_changes()
        self._check_wanted.set()

    def _take_changes(self) -> None:
        changed = self._watcher.changed() if self._watcher is not None else frozenset[Path]()
        # None: events were lost, and every database may have changed.
        for directory in list(self._live) if changed is None else changed:
            if (live := self._live.get(directory)) is not None:
                live.mark_changed()
                self._file_changed.set()
                self._check_wanted.set()

    async def _refresh(self, directory: Path, live: LiveIdentity, log: FilteringBoundLogger) -> None:
        identity = live.loaded
        try:
            if not await self._is_current(directory, live):
                live.replace(await self._load(directory, log))
            elif self._clock() >= renewal_due(identity):
                log.info("identity.renewing", when=identity.not_after)
                password = self._passwords.get(directory, "")
                renewed = await renew_identity(identity, log=log, password=password, now=self._clock())
                await self._trust(renewed, log)
                live.replace(_ready(renewed))
        except (IdentityError, OSError) as exc:
            log.warning("identity.renewal_failed", directory=directory, reason=exc)
        except Exception:
            # The old identity serves on, and so does everything else here.
            log.exception("identity.renewal_crashed", directory=directory)

    async def _is_current(self, directory: Path, live: LiveIdentity) -> bool:
        await self._call(directory, self._watch_database, directory)
        return await self._call(directory, live.is_current)

    async def _call(self, directory: Path, function: Callable[..., _T], *arguments: Path) -> _T:
        """Call a function that reads ``directory``, whose file system may hang, in a thread."""
        try:
            return await self._files.run(functools.partial(function, *arguments))
        except TimeoutError as exc:
            problem = f"its file system hangs: {exc.strerror}"
            raise IdentityError(problem, where=str(directory), remedy="mend that, and try again") from exc

    def _watch_database(self, directory: Path) -> None:
        # Without a watch, connections and the clock lead to a check.
        if self._watcher is not None:
            with contextlib.suppress(OSError):
                self._watcher.watch_files(directory, directory, KEPT_FILES)

    async def _load(self, directory: Path, log: FilteringBoundLogger) -> Identity:
        # In a thread, before anything else touches these directories: one that hangs is found here.
        for each in (directory, moks_directory(directory), default_client_directory(self._environ)):
            await self._call(each, remove_leftovers, each)
        identity = await self._open(directory, log)
        await self._trust(identity, log)
        await self._call(directory, self._watch_database, directory)
        return _ready(identity)

    async def _open(self, directory: Path, log: FilteringBoundLogger) -> Identity:
        """Load or make an identity; a database without a password needs none."""
        own = self._password or ""
        for password in ["", own] if own and Database(directory).exists else [own]:
            self._passwords[directory] = password
            try:
                return await load_or_create_identity(directory, log=log, password=password, now=self._clock())
            except WrongPassword:
                if password == own:
                    raise
        raise AssertionError("one of the passwords was the last")

    async def _trust(self, identity: Identity, log: FilteringBoundLogger) -> None:
        directory = default_client_directory(self._environ)
        try:
            await authorize(identity.certificate, directory, log=log)
        except IdentityError as exc:
            # Other clients can still be served.
            log.warning("trust.failed", directory=directory, reason=exc)


@contextlib.contextmanager
def open_watcher(log: FilteringBoundLogger | None) -> Iterator[DirectoryWatcher[Path] | None]:
    """Hold a watcher for :class:`IdentityStore`, or None where this host allows no more, which is logged."""
    try:
        # pk12util opens a database for writing only to read it, which is no change.
        watcher = DirectoryWatcher[Path](inotify.WRITE)
    except OSError as exc:
        if log is not None:
            log.warning("identity.not_watched", reason=exc.strerror)
        yield None
        return
    with contextlib.closing(watcher):
        yield watcher


def _ready(identity: Identity) -> Identity:
    # A key that TLS refuses is found here, not by each connection.
    _context = identity.context
    return identity


def renewal_due(identity: Identity) -> datetime:
    """Return when to renew an identity: a month before it expires, or in its last third if that is later."""
    lifetime = identity.not_after - identity.not_before
    return identity.not_after - min(RENEW_BEFORE, lifetime / 3)
