"""What a certificate is worth: its dates, and whether a user's client trusts it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio
from cryptography import x509

from stapsrv.doctor.findings import Finding, failure, fault, ok, warning
from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import CERTIFICATE_FILE, serial_pairs
from stapsrv.identity.store import RENEW_BEFORE
from stapsrv.identity.trust import ALL_CLIENTS, default_client_directory, is_trusted
from stapsrv.system.blocking import BlockingCalls

_PATIENCE_S = 100.0
"""Longer than a lock and certutil are waited for: who is given up hangs in a file system."""


def dates_of(certificate: x509.Certificate) -> Finding:
    """Return whether a certificate is valid now, and for how long."""
    now = datetime.now(UTC)
    until = certificate.not_valid_after_utc
    said = f"serial {serial_pairs(certificate)}, valid until {until:%Y-%m-%d}"
    remedy = "stap-server cert renew, on the server's host"
    if now < certificate.not_valid_before_utc:
        begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return failure("certificate", f"is not valid before {begins}", f"set the clock right; else {remedy}")
    if now > until:
        return failure("certificate", f"has expired on {until:%Y-%m-%d %H:%M} UTC", remedy)
    if until - now < RENEW_BEFORE:
        return warning(
            "certificate",
            f"{said}, less than a month",
            "a running server renews it by itself; else start one",
        )
    return ok("certificate", said)


async def trust_of(
    certificate: x509.Certificate, environ: Mapping[str, str], *, distrust: str, remedy: str
) -> Finding:
    """Return whether a user's own client trusts a certificate.

    Args:
        certificate: a server's.
        environ: the user's environment variables.
        distrust: the answer where it does not.
        remedy: what to do about that.
    """
    for place in (default_client_directory(environ), ALL_CLIENTS):
        try:
            # In a thread that can be given up: the database may be on a file system that hangs.
            trusted = await BlockingCalls(timeout_s=_PATIENCE_S).run(
                partial(anyio.run, is_trusted, certificate, place)
            )
        except IdentityError as exc:
            if shutil.which("certutil") is None:
                # A client's host need not have it.
                return warning(
                    "trust", f"cannot be told without certutil: {place}", "install it (Debian: libnss3-tools)"
                )
            return fault("trust", exc)
        except TimeoutError as exc:
            return failure("trust", f"{place}: {exc.strerror}", "see which file system hangs")
        if trusted:
            return ok("trust", f"{place} trusts it")
    return failure("trust", distrust, remedy)


def kept_certificate(directory: Path) -> x509.Certificate | None:
    """Return the certificate beside a database, as clients are given it; None if there is none.

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
