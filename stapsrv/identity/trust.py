"""Who trusts a server: the client's databases that its certificate is imported into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from stapsrv.identity.certificate import NICKNAME, Identity, systemtap_directory
from stapsrv.identity.nss import PUBLIC_MODE, Database
from stapsrv.identity.staging import changing, is_half_changed, reading, refusals_explained

_PEER_TRUST = "P,P,P"


def default_client_directory(environ: Mapping[str, str]) -> Path:
    """Return the database of the servers that a user's client trusts."""
    return systemtap_directory(environ) / "ssl" / "client"


async def trust_locally(identity: Identity, directory: Path, *, log: FilteringBoundLogger) -> None:
    """Make the client that reads ``directory`` trust the server; logs ``trust.established``.

    Certificates trusted before stay so. The database is made when missing, readable by all (0644), as
    the original has it: there is nothing secret in it. Any number of servers may do this at once.

    Args:
        identity: the server's.
        directory: the client's NSS database directory.
        log: hears of the success; a failure is the caller's to log (``trust.failed``).

    Raises:
        IdentityError: the database is damaged, locked or not ours to write. The server can serve all the
            same: clients that trust it by other ways are not concerned.
    """
    database = Database(directory)
    with refusals_explained(directory):
        # Looking first does for a database that only somebody else may write.
        async with reading(directory):
            trusted = not is_half_changed(directory) and await _is_trusted(identity, database)
        if not trusted:
            async with changing(directory):
                if not database.exists:
                    await database.create(file_mode=PUBLIC_MODE)
                await database.import_certificate(identity.certificate, NICKNAME, _PEER_TRUST)
    log.info("trust.established", directory=directory)


async def _is_trusted(identity: Identity, database: Database) -> bool:
    if not database.exists or identity.certificate not in await database.certificates(NICKNAME):
        return False
    return all(trust == _PEER_TRUST for nickname, trust in await database.listing() if nickname == NICKNAME)
