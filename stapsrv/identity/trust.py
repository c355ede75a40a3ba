"""Who trusts a server: the client's databases that its certificate is imported into."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import anyio.to_thread
from cryptography import x509
from structlog.typing import FilteringBoundLogger

from stapsrv.identity.certificate import NICKNAME, Identity, systemtap_directory
from stapsrv.identity.locked_directory import (
    changing,
    commit,
    is_half_changed,
    reading,
    refusals_explained,
    staged,
)
from stapsrv.identity.nss import DATABASE_FILES, PUBLIC_MODE, Database

ALL_CLIENTS = Path("/etc/systemtap/ssl/client")
"""The servers that every user's client trusts; root's to change (stappaths(7))."""
MODULE_SIGNERS = Path("/etc/systemtap/staprun")
"""The servers whose signatures let unprivileged users load a module; root's to change."""

_PEER_TRUST = "P,P,P"


def default_client_directory(environ: Mapping[str, str]) -> Path:
    """Return the database of the servers that a user's client trusts."""
    return systemtap_directory(environ) / "ssl" / "client"


async def trust_locally(identity: Identity, directory: Path, *, log: FilteringBoundLogger) -> None:
    """Make the client that reads ``directory`` trust the server (see :func:`authorize`)."""
    await authorize(identity.certificate, directory, log=log)


async def authorize(certificate: x509.Certificate, directory: Path, *, log: FilteringBoundLogger) -> None:
    """Make whoever reads the database in ``directory`` trust a server; logs ``trust.established``.

    Certificates trusted before stay so. The database is made when missing, readable by all (0644), as
    the original has it: there is nothing secret in it. Any number of servers may do this at once.

    Args:
        certificate: the server's.
        directory: an NSS database directory: a client's, or the one that staprun reads.
        log: hears of the success; a failure is the caller's to log (``trust.failed``).

    Raises:
        IdentityError: the database is damaged, locked or not ours to write. The server can serve all the
            same: clients that trust it by other ways are not concerned.
    """
    database = Database(directory)
    with refusals_explained(directory):
        # Looking first does for a database that only somebody else may write.
        async with reading(directory):
            trusted = not is_half_changed(directory) and await _is_trusted(certificate, database)
        if not trusted:
            async with changing(directory):
                if not database.exists:
                    await database.create(file_mode=PUBLIC_MODE)
                await database.import_certificate(certificate, NICKNAME, _PEER_TRUST)
    log.info("trust.established", directory=directory)


async def revoke(certificate: x509.Certificate, directory: Path) -> bool:
    """Take the trust in a server back; the others that the database holds stay trusted throughout.

    Returns:
        Whether it was trusted before.

    Raises:
        IdentityError: the database is damaged, locked or not ours to write; nothing was changed.
    """
    with refusals_explained(directory):
        if not Database(directory).exists:
            return False
        async with changing(directory):
            held = await Database(directory).certificates(NICKNAME)
            if certificate not in held:
                return False
            with staged(directory) as preparing:
                for name in DATABASE_FILES:
                    shutil.copy2(directory / name, preparing / name)
                database = Database(preparing)
                await database.remove_certificates(NICKNAME)
                for other in held:
                    if other != certificate:
                        await database.import_certificate(other, NICKNAME, _PEER_TRUST)
                await anyio.to_thread.run_sync(commit, preparing, directory)
    return True


async def is_trusted(certificate: x509.Certificate, directory: Path) -> bool:
    """Whether the database in ``directory`` trusts a server; a missing database trusts nobody.

    Raises:
        IdentityError: the database is damaged or not ours to read.
    """
    with refusals_explained(directory):
        async with reading(directory):
            return await _is_trusted(certificate, Database(directory))


async def _is_trusted(certificate: x509.Certificate, database: Database) -> bool:
    if not database.exists or certificate not in await database.certificates(NICKNAME):
        return False
    return all(trust == _PEER_TRUST for nickname, trust in await database.listing() if nickname == NICKNAME)
