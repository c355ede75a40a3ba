"""Who trusts a server: the client's databases that its certificate is imported into."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import anyio.to_thread
from cryptography import x509
from structlog.typing import FilteringBoundLogger

from stapsrv.identity.certificate import NICKNAME, systemtap_directory
from stapsrv.identity.locked_directory import (
    commit,
    explain_os_errors,
    has_pending_commit,
    read_lock,
    staging_directory,
    write_lock,
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
    with explain_os_errors(directory):
        # Looking first does for a database that only somebody else may write.
        async with read_lock(directory):
            trusted = not has_pending_commit(directory) and await _is_trusted(certificate, database)
        if not trusted:
            async with write_lock(directory):
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
    with explain_os_errors(directory):
        if not Database(directory).exists:
            return False
        async with write_lock(directory):
            found = await Database(directory).certificates(NICKNAME)
            if certificate not in found:
                return False
            with staging_directory(directory) as staging:
                for name in DATABASE_FILES:
                    shutil.copy2(directory / name, staging / name)
                database = Database(staging)
                await database.remove_certificates(NICKNAME)
                for other in found:
                    if other != certificate:
                        await database.import_certificate(other, NICKNAME, _PEER_TRUST)
                await anyio.to_thread.run_sync(commit, staging, directory)
    return True


async def is_trusted(certificate: x509.Certificate, directory: Path) -> bool:
    """Whether the database in ``directory`` trusts a server; a missing database trusts nobody.

    Raises:
        IdentityError: the database is damaged or not ours to read.
    """
    with explain_os_errors(directory):
        async with read_lock(directory):
            return await _is_trusted(certificate, Database(directory))


async def _is_trusted(certificate: x509.Certificate, database: Database) -> bool:
    if not database.exists or certificate not in await database.certificates(NICKNAME):
        return False
    return all(trust == _PEER_TRUST for nickname, trust in await database.listing() if nickname == NICKNAME)
