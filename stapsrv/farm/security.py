"""The security of a farm: mutual TLS with certificates of the farm's own authority.

Names in certificates are not compared with addresses (Dask does not): a holder of one of the
authority's may be any part of the farm.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import attrs
from cryptography import x509
from distributed.security import Security

from stapsrv.config.addresses import parse_farm_address
from stapsrv.errors import ConfigError
from stapsrv.farm.pem_files import read_certificate, read_key

_ROLES = ("client", "scheduler", "worker")
_ISSUE = "issue one with stap-farm ca issue"


@attrs.frozen
class FarmCredentials:
    """The farm's authority, and this process's certificate and key of it; files in PEM."""

    ca: Path
    cert: Path
    key: Path

    @property
    def certificates(self) -> tuple[Path, Path]:
        """The files that end some day."""
        return self.ca, self.cert


def farm_security(
    credentials: FarmCredentials | None, *, address: str, now: datetime | None = None
) -> Security:
    """Return what Dask has to know to listen at, or connect to, the address of a scheduler.

    Each side shows its certificate, as a client and as a server, and takes none of another authority. Only
    a ``tcp://`` address has no credentials, and is one of the loopback interface. Reads the files, and tries
    the handshake with itself.

    Raises:
        ConfigError: the address and the credentials do not fit, a file cannot be used, others can read the
            key, or a peer would refuse the certificate.
    """
    try:
        is_encrypted = parse_farm_address(address).is_encrypted
    except ValueError as exc:
        raise ConfigError(f"expected {exc}", where=address) from exc
    if not is_encrypted:
        if credentials is not None:
            raise ConfigError(
                "has no use for certificates", where=address, remedy="write tls://, or leave them out"
            )
        return Security(require_encryption=False)
    if credentials is None:
        raise ConfigError(
            "needs the farm's authority, a certificate and its key",
            where=address,
            remedy="make them with stap-farm ca, and name all three",
        )
    _check_files(credentials, now or datetime.now(UTC))
    # All is stated: what is not would come from the user's own configuration of Dask.
    security = Security(
        require_encryption=True,
        tls_ca_file=str(credentials.ca),
        tls_ciphers=None,
        tls_min_version=ssl.TLSVersion.TLSv1_2,
        tls_max_version=None,
        **{f"tls_{role}_cert": str(credentials.cert) for role in _ROLES},
        **{f"tls_{role}_key": str(credentials.key) for role in _ROLES},
    )
    _try_handshake(security, credentials)
    return security


def _check_files(credentials: FarmCredentials, now: datetime) -> None:
    authority, certificate = read_certificate(credentials.ca), read_certificate(credentials.cert)
    if read_key(credentials.key).public_key() != certificate.public_key():
        raise ConfigError(
            f"is not the key of {credentials.cert}",
            where=str(credentials.key),
            remedy="name the two that belong together",
        )
    _check_dates(credentials.ca, authority, now, remedy="make a new authority: stap-farm ca init")
    _check_dates(credentials.cert, certificate, now, remedy=_ISSUE)


def _check_dates(path: Path, certificate: x509.Certificate, now: datetime, *, remedy: str) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise ConfigError(f"expired on {end:%Y-%m-%d}", where=str(path), remedy=remedy)
    if now < begin:
        problem = f"is not valid before {begin:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(problem, where=str(path), remedy="see whether this host's clock is right")


def _try_handshake(security: Security, credentials: FarmCredentials) -> None:
    """Shake hands with oneself, in memory, by the contexts that Dask will use."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        listening = security.get_listen_args("scheduler")["ssl_context"]
        connecting = security.get_connection_args("worker")["ssl_context"]
        server = listening.wrap_bio(to_server, to_client, server_side=True)
        client = connecting.wrap_bio(to_client, to_server)
        # Until each has read the last that the other says: TLS 1.3 has three flights.
        for _ in range(3):
            for side in (client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as exc:
        raise ConfigError(
            f"is no certificate of the authority in {credentials.ca} ({exc.verify_message})",
            where=str(credentials.cert),
            remedy=f"{_ISSUE}, in that authority's directory",
        ) from exc
    except OSError as exc:
        # ssl.SSLError is one.
        raise ConfigError(f"TLS refuses it ({exc})", where=str(credentials.cert), remedy=_ISSUE) from exc
