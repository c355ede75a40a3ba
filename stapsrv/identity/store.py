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
from stapsrv.filework import FileWork
from stapsrv.identity.certificate import (
    Identity,
    Validity,
    default_directory,
    load_or_create_identity,
    renew_identity,
    report_identity,
)
from stapsrv.identity.mok import moks_directory
from stapsrv.identity.nss import Database, WrongPassword
from stapsrv.identity.signing import sign_module
from stapsrv.identity.staging import sweep_left_over
from stapsrv.identity.trust import default_client_directory, trust_locally

_DATABASE_FILES = ("cert9.db", "key4.db")
RENEW_BEFORE = timedelta(days=30)
_CHECK_S = 60.0
"""Between looks at the clock; a handshake that meets a stale identity has it looked after at once."""
_PAUSE_S = 1.0
_DRIFT_S = 3600.0

Clock = Callable[[], datetime]

Fingerprint = tuple[tuple[int, int, int], ...]
"""What changes when a database's files are replaced or written."""


@attrs.frozen
class KeptIdentity:
    """An identity and what is derived from it once for all servers that have it.

    Attributes:
        identity: certificate and key.
        context: the server's side of TLS with them.
        fingerprint: of the database's files as they were when it was loaded.
    """

    identity: Identity
    context: ssl.SSLContext = attrs.field(repr=False, eq=False)
    fingerprint: Fingerprint = attrs.field(default=(), repr=False, eq=False)

    @property
    def not_after(self) -> datetime:
        """The end of the certificate's validity."""
        return self.identity.not_after

    def sign(self, module: bytes) -> bytes:
        """Return the signature of a module by the certificate's key; takes some milliseconds."""
        return sign_module(self.identity.key, module)


class LiveIdentity:
    """Who the servers of one database directory are, at each moment.

    Called at each handshake, it answers at once, and sees to it that the store looks soon whether what it
    has is still what it should have.
    """

    def __init__(self, kept: KeptIdentity, *, clock: Clock, met: Callable[[], None]) -> None:
        self.kept = kept
        self._clock = clock
        self._met = met
        self._looked = kept.fingerprint
        self._changed = anyio.Event()

    def __call__(self) -> KeptIdentity:
        """Return the identity for a new connection; looks at no file, which could take long."""
        self._met()
        return self.kept

    def is_current(self) -> bool:
        """Whether the certificate is valid now, and its database is the one that it was loaded from."""
        identity = self.kept.identity
        return (
            identity.validity(self._clock()) is Validity.VALID
            and _fingerprint(identity.directory) == self.kept.fingerprint
        )

    def is_replaced(self) -> bool:
        """Whether the database is another one than this identity's, and than the one met at the last call.

        For whoever watches the directory: a database that cannot be loaded is to be met once.
        """
        before, self._looked = self._looked, _fingerprint(self.kept.identity.directory)
        return self._looked not in (before, self.kept.fingerprint)

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
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        password: str | None = None,
        clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        self._environ = environ
        self._password = password
        self._passwords: dict[Path, str] = {}
        self._clock = clock
        self._live: dict[Path, LiveIdentity] = {}
        self._files = FileWork()
        self._working = anyio.Lock()
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
                live = LiveIdentity(kept, clock=self._clock, met=self._note_met)
                self._live[directory] = live
            else:
                live.replace(kept)
            return live

    async def keep_fresh(self, log: FilteringBoundLogger) -> NoReturn:
        """Renew certificates before they expire, and take up databases that were replaced, until cancelled.

        A failure leaves the old identity in service, and is logged and tried again.
        """
        seen = _Clocks(self._clock())
        while True:
            with anyio.move_on_after(_CHECK_S):
                await self._met.wait()
            self._met = anyio.Event()
            if seen.jumped(self._clock()):
                # A clock that is set back soon must not cost a certificate that was valid all the time.
                log.warning("clock.jumped")
                await anyio.sleep(_CHECK_S)
            for directory, live in list(self._live.items()):
                async with self._working:
                    await self._freshen(directory, live, log)
            # Whatever keeps failing does so once a second at the most, however many peers connect.
            await anyio.sleep(_PAUSE_S)

    def _note_met(self) -> None:
        self._met.set()

    async def _freshen(self, directory: Path, live: LiveIdentity, log: FilteringBoundLogger) -> None:
        identity = live.kept.identity
        try:
            if not await self._is_current(directory, live):
                live.replace(await self._load(directory, log))
            elif self._clock() >= renewal_due(identity):
                log.info("identity.renewing", when=identity.not_after)
                password = self._passwords.get(directory, "")
                renewed = await renew_identity(identity, log=log, password=password, now=self._clock())
                await self._trust(renewed, log)
                live.replace(await self._keep(renewed))
        except (IdentityError, OSError) as exc:
            log.warning("identity.renewal_failed", directory=directory, reason=exc)
        except Exception:
            # The old identity serves on, and so does everything else here.
            log.exception("identity.renewal_crashed", directory=directory)

    async def _is_current(self, directory: Path, live: LiveIdentity) -> bool:
        with _hangs_explained(directory):
            return await self._files.run(live.is_current)

    async def _load(self, directory: Path, log: FilteringBoundLogger) -> KeptIdentity:
        changed = (directory, moks_directory(directory), default_client_directory(self._environ))
        # Looked at in a thread before anything is done: a directory that hangs is met here.
        for place in changed:
            with _hangs_explained(place):
                await self._files.run(functools.partial(sweep_left_over, place))
        identity = await self._open(directory, log)
        await self._trust(identity, log)
        return await self._keep(identity)

    async def _keep(self, identity: Identity) -> KeptIdentity:
        with _hangs_explained(identity.directory):
            fingerprint = await self._files.run(functools.partial(_fingerprint, identity.directory))
        return KeptIdentity(identity, identity.tls_context(), fingerprint)

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


def _fingerprint(directory: Path) -> Fingerprint:
    found = []
    for name in _DATABASE_FILES:
        try:
            status = (directory / name).stat()
        except OSError:
            return ()
        found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)
