"""The identities of one process: servers that share a database directory share what is in it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import anyio
import attrs
from structlog.typing import FilteringBoundLogger

from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import (
    Identity,
    Validity,
    default_directory,
    load_or_create_identity,
    report_identity,
)
from stapsrv.identity.trust import default_client_directory, trust_locally

_DATABASE_FILES = ("cert9.db", "key4.db")

_Fingerprint = tuple[tuple[int, int, int], ...]


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


class IdentityStore:
    """Loads each database directory once, and again when its files are no longer the same.

    Args:
        environ: names the default directories (``SYSTEMTAP_DIR``, ``HOME``).
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._kept: dict[Path, tuple[_Fingerprint, KeptIdentity]] = {}
        self._loading = anyio.Lock()

    async def obtain(self, directory: Path | None, log: FilteringBoundLogger) -> KeptIdentity:
        """Return who a server with its database in ``directory`` is, and make the local client trust it.

        Args:
            directory: the database directory, or None for the user's own.
            log: of the server that asks.

        Raises:
            IdentityError: there is no identity, and none could be made.
        """
        directory = directory or default_directory(self._environ)
        async with self._loading:
            kept = self._unchanged(directory)
            if kept is not None:
                report_identity(kept.identity, log=log)
                return kept
            identity = await load_or_create_identity(directory, log=log)
            await self._trust(identity, log)
            kept = KeptIdentity(identity, identity.tls_context())
            self._kept[directory] = (_fingerprint(directory), kept)
            return kept

    async def _trust(self, identity: Identity, log: FilteringBoundLogger) -> None:
        directory = default_client_directory(self._environ)
        try:
            await trust_locally(identity, directory, log=log)
        except IdentityError as exc:
            # Clients elsewhere are served all the same.
            log.warning("trust.failed", directory=directory, reason=exc)

    def _unchanged(self, directory: Path) -> KeptIdentity | None:
        fingerprint, kept = self._kept.get(directory, ((), None))
        if kept is None or fingerprint != _fingerprint(directory):
            return None
        return kept if kept.identity.validity(datetime.now(UTC)) is Validity.VALID else None


def _fingerprint(directory: Path) -> _Fingerprint:
    """Return what changes when a database's files are replaced or written."""
    found = []
    for name in _DATABASE_FILES:
        try:
            status = (directory / name).stat()
        except OSError:
            return ()
        found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)
