"""Checks of a certificate: its dates, and whether a user's client trusts it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio
from cryptography import x509

from stapsrv.doctor.findings import Finding, error, failure, ok, warning
from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import CERTIFICATE_FILE, serial_pairs
from stapsrv.identity.store import RENEW_BEFORE
from stapsrv.identity.trust import ALL_CLIENTS, can_use, default_client_directory, is_trusted
from stapsrv.system.blocking import BlockingCalls

# Longer than the deadlines of a lock and of certutil: what takes longer hangs in a file system.
_TIMEOUT_S = 100.0


def check_dates(certificate: x509.Certificate) -> Finding:
    """Check that a certificate is valid now, and for some time."""
    now = datetime.now(UTC)
    until = certificate.not_valid_after_utc
    text = f"serial {serial_pairs(certificate)}, valid until {until:%Y-%m-%d}"
    remedy = "stap-server cert renew, on the server's host"
    if now < certificate.not_valid_before_utc:
        begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return failure("certificate", f"is not valid before {begins}", f"set the clock right; else {remedy}")
    if now > until:
        return failure("certificate", f"has expired on {until:%Y-%m-%d %H:%M} UTC", remedy)
    if until - now < RENEW_BEFORE:
        return warning(
            "certificate",
            f"{text}, less than a month",
            "a running server renews it by itself; else start one",
        )
    return ok("certificate", text)


async def check_trust(
    certificate: x509.Certificate, environ: Mapping[str, str], *, distrust: str, remedy: str
) -> Finding:
    """Check that the client of the user with this environment trusts a server's certificate.

    ``distrust`` and ``remedy`` are the answer and the remedy where it does not.
    """
    for database in (default_client_directory(environ), ALL_CLIENTS):
        try:
            # In a thread that can be abandoned: the file system may hang.
            trusted = await BlockingCalls(timeout_s=_TIMEOUT_S).run(
                partial(anyio.run, is_trusted, certificate, database)
            )
        except IdentityError as exc:
            if shutil.which("certutil") is None:
                # A client's host need not have it.
                return warning(
                    "trust",
                    f"cannot be checked without certutil: {database}",
                    "install it (Debian: libnss3-tools)",
                )
            return error("trust", exc)
        except TimeoutError as exc:
            return failure("trust", f"{database}: {exc.strerror}", "see which file system hangs")
        if trusted and database == ALL_CLIENTS and not can_use(ALL_CLIENTS):
            unusable = "of no use to clients that cannot write it (SEC_ERROR_READ_ONLY)"
            return failure("trust", f"only {ALL_CLIENTS} trusts it, {unusable}", remedy)
        if trusted:
            return ok("trust", f"{database} trusts it")
    return failure("trust", distrust, remedy)


def saved_certificate(directory: Path) -> x509.Certificate | None:
    """Return the certificate file beside a database; None if there is none.

    Raises:
        IdentityError: it cannot be read.
    """
    file = directory / CERTIFICATE_FILE
    try:
        return x509.load_der_x509_certificate(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise IdentityError(f"cannot be read ({exc})", where=str(file)) from exc
