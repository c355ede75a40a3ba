"""Who belongs to a farm: mutual TLS with certificates of the farm's own authority."""

from __future__ import annotations

from pathlib import Path

import attrs
from distributed.security import Security


@attrs.frozen
class FarmCredentials:
    """The farm's authority, and this process's certificate and key of it; files in PEM."""

    ca: Path
    cert: Path
    key: Path


def farm_security(credentials: FarmCredentials | None) -> Security:
    """Return what Dask has to know for connections of a farm; without credentials they are plain TCP.

    Each side shows its certificate, as a client and as a server, and takes none of another authority.
    """
    if credentials is None:
        return Security(require_encryption=False)
    roles = ("client", "scheduler", "worker")
    own = {f"tls_{role}_cert": str(credentials.cert) for role in roles}
    own |= {f"tls_{role}_key": str(credentials.key) for role in roles}
    return Security(require_encryption=True, tls_ca_file=str(credentials.ca), **own)
