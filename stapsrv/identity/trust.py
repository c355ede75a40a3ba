"""Trust in a server: its certificate in the databases of clients and of staprun.

Where a database is damaged, locked or forbidden, an IdentityError says so, and nothing is changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from structlog.typing import FilteringBoundLogger

from stapsrv.identity.certificate import NICKNAME, systemtap_directory
from stapsrv.identity.locked_directory import explain_os_errors, read_lock, replacing, write_lock
from stapsrv.identity.nss import DATABASE_FILES, PUBLIC_MODE, Database

# Only root changes these (stappaths(7)): the servers that every user's client trusts, and those whose
# signatures let unprivileged users load a module.
ALL_CLIENTS = Path("/etc/systemtap/ssl/client")
MODULE_SIGNERS = Path("/etc/systemtap/staprun")

_PEER_TRUST = "P,P,P"


def default_client_directory(environ: Mapping[str, str]) -> Path:
    """Return the database of the servers that a user's client trusts."""
    return systemtap_directory(environ) / "ssl" / "client"


async def authorize(certificate: x509.Certificate, directory: Path, *, log: FilteringBoundLogger) -> None:
    """Make the readers of the database in ``directory`` trust a server; logs ``trust.established``.

    Others stay trusted. The database is made, readable by all, if it is missing. Several servers may do this
    at once. A failure is the caller's to log; the server can serve all the same.
    """
    # Read first: it may hold the certificate already, and only somebody else may write it.
    if not await is_trusted(certificate, directory):
        database = Database(directory)
        with explain_os_errors(directory):
            async with write_lock(directory):
                # Readable by all, like that of SystemTap's own server: nothing in it is secret.
                if not database.exists:
                    await database.create(file_mode=PUBLIC_MODE)
                await database.import_certificate(certificate, NICKNAME, _PEER_TRUST)
    log.info("trust.established", directory=directory)


async def revoke(certificate: x509.Certificate, directory: Path) -> bool:
    """Remove the trust in a server, and return whether it was trusted; others stay trusted throughout."""
    with explain_os_errors(directory):
        if not Database(directory).exists:
            return False
        async with write_lock(directory):
            found = await Database(directory).certificates(NICKNAME)
            if certificate not in found:
                return False
            async with replacing(directory) as staging:
                for name in DATABASE_FILES:
                    shutil.copy2(directory / name, staging / name)
                database = Database(staging)
                await database.remove_certificates(NICKNAME)
                for other in found:
                    if other != certificate:
                        await database.import_certificate(other, NICKNAME, _PEER_TRUST)
    return True


def can_use(directory: Path) -> bool:
    """Whether a client of this process's user can use a database."""
    # Since SystemTap 4.0 it opens it for writing.
    return all(os.access(directory / name, os.W_OK) for name in DATABASE_FILES)


async def is_trusted(certificate: x509.Certificate, directory: Path) -> bool:
    """Whether the database in ``directory``, if there is a whole one, trusts a server."""
    database = Database(directory)
    with explain_os_errors(directory):
        async with read_lock(directory) as is_whole:
            if not (is_whole and database.exists and certificate in await database.certificates(NICKNAME)):
                return False
            listing = await database.listing()
            return all(trust == _PEER_TRUST for nickname, trust in listing if nickname == NICKNAME)
