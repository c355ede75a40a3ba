"""A server's identity: a self-signed certificate and its key in an NSS database directory.

Certificate, directory and trust flags are like those of SystemTap's own server, so that either server works
with a directory that the other one made (PROTOCOL, Certificates).
"""

from __future__ import annotations

import functools
import os
import pwd
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias, TypeGuard

import anyio.to_thread
import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.typing import FilteringBoundLogger

from stapsrv.errors import IdentityError
from stapsrv.identity.diagnosis import DamagedDatabase
from stapsrv.identity.locked_directory import explain_os_errors, path_exists, read_lock, replacing, write_lock
from stapsrv.identity.memfd import memory_file
from stapsrv.identity.nss import PUBLIC_MODE, Database, Fingerprint
from stapsrv.identity.permissions import refuse_exposed, tighten_own
from stapsrv.identity.selfsigned import extra_names_of, host_name, key_in_pem, make_certificate

NICKNAME = "stap-server"
CERTIFICATE_FILE = "stap.cert"

_TRUST = "PCu,,PCu"
# The password, then the database.
_OBSOLETE = ("pw", "cert8.db", "key3.db")


# Without slots, so that the context can be made once, when it is needed.
@attrs.frozen(slots=False)
class Identity:
    """A server's certificate and private key, and the database directory that holds them."""

    directory: Path
    certificate: x509.Certificate
    key: rsa.RSAPrivateKey = attrs.field(repr=False, eq=False)
    # Of the database's files when they were read.
    fingerprint: Fingerprint = attrs.field(default=(), repr=False, eq=False)

    @property
    def der(self) -> bytes:
        """The certificate in DER, the contents of ``stap.cert``, which clients import."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def serial(self) -> str:
        """The serial number, as :func:`serial_pairs` writes it."""
        return serial_pairs(self.certificate)

    @functools.cached_property
    def sha256(self) -> str:
        """The certificate's fingerprint, as ``openssl x509 -fingerprint -sha256`` writes it."""
        return self.certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    @property
    def not_before(self) -> datetime:
        """The beginning of its validity, in UTC."""
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """The end of its validity, in UTC."""
        return self.certificate.not_valid_after_utc

    def is_valid(self, now: datetime) -> bool:
        """Whether the certificate is valid at ``now``, an aware time."""
        return self.not_before <= now <= self.not_after

    def sign(self, module: bytes) -> bytes:
        """Return the raw RSA signature of a module that ``NAME.ko.sgn`` holds; takes some milliseconds.

        ``staprun`` checks it against the certificates that its host's root has authorised before it loads a
        module for a user who may not load any (PROTOCOL, privilege and signing).
        """
        return self.key.sign(module, PKCS1v15(), hashes.SHA256())

    @functools.cached_property
    def context(self) -> ssl.SSLContext:
        """The context that all its servers share: TLS 1.2 and 1.3, without client certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_3
        # One, for clients that connect again: they skip the costly signature of the key exchange. A ticket is
        # good for this context only, so that a renewed certificate is shown to all.
        context.num_tickets = 1
        with memory_file(self.certificate.public_bytes(Encoding.PEM) + key_in_pem(self.key)) as chain:
            context.load_cert_chain(chain.path)
        return context


# What a directory holds: an identity, a database that lost it, or no database.
_Found: TypeAlias = Identity | DamagedDatabase | None


def serial_pairs(certificate: x509.Certificate) -> str:
    """Return a certificate's serial number as hex pairs joined by ``:``, as ``certinfo`` announces it."""
    # Clients take the bytes of the DER encoding: a number whose first bit is set begins with 00.
    number = certificate.serial_number
    return number.to_bytes(number.bit_length() // 8 + 1, "big").hex(":")


def systemtap_directory(environ: Mapping[str, str]) -> Path:
    """Return a user's SystemTap directory: ``$SYSTEMTAP_DIR``, else ``~/.systemtap`` (stappaths(7))."""
    if directory := environ.get("SYSTEMTAP_DIR"):
        return Path(directory)
    return Path(environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir) / ".systemtap"


def default_directory(environ: Mapping[str, str]) -> Path:
    """Return the database of a user's servers that configure none."""
    return systemtap_directory(environ) / "ssl" / "server"


async def load_or_create_identity(
    directory: Path, *, log: FilteringBoundLogger, password: str = "", now: datetime | None = None
) -> Identity:
    """Load the identity in ``directory``, or make a new one where it is missing, not valid now or damaged.

    A new one, with the same password, appears all at once; other files in the directory, which is made if
    missing, stay. Of several processes that do this at the same moment, one makes it and the others load it.

    Raises:
        IdentityError: the database is obsolete, locked or forbidden, has another password, or holds other
            certificates; nothing was changed.

    Cancellation: the directory has either all of the new identity or none of it.
    """
    now = now or datetime.now(UTC)
    with explain_os_errors(directory):
        _refuse_obsolete(directory)
        _tighten(directory, log)
        refuse_exposed(directory)
        async with read_lock(directory) as is_whole:
            found = await _find(directory, password) if is_whole else None
        if _is_usable(found, now):
            _report(found, directory, log=log, now=now)
            return found
        async with write_lock(directory):
            # Again: another process may have made one in between.
            found = await _find(directory, password)
            _report(found, directory, log=log, now=now)
            if _is_usable(found, now):
                return found
            return await _replace(directory, password, now, log)


async def renew_identity(
    identity: Identity, *, log: FilteringBoundLogger, password: str, now: datetime
) -> Identity:
    """Replace ``identity``, valid or not, with a new one; one that another process made is loaded.

    The new one keeps the DNS names of the old one beside the host's.

    Raises:
        IdentityError: the database cannot be changed, or holds other certificates; nothing was changed.

    Cancellation: the directory has either all of the new identity or all of the old one.
    """
    directory = identity.directory
    with explain_os_errors(directory):
        async with write_lock(directory):
            found = await _find(directory, password)
            if _is_usable(found, now) and found.certificate != identity.certificate:
                report_identity(found, log=log, now=now)
                return found
            kept_names = extra_names_of(identity.certificate, host_name())
            return await _replace(directory, password, now, log, extra_names=kept_names)


async def make_identity(
    directory: Path, *, log: FilteringBoundLogger, extra_names: Sequence[str] = (), password: str = ""
) -> Identity:
    """Make an identity in ``directory``, made if missing, replacing one that may be there.

    ``extra_names`` are further DNS names for the certificate.

    Raises:
        IdentityError: the directory cannot be changed, or holds other certificates.
        ValueError: a name is not a DNS name.

    Cancellation: the directory has either all of the new identity or what was there.
    """
    with explain_os_errors(directory):
        _refuse_obsolete(directory)
        _tighten(directory, log)
        refuse_exposed(directory.parent)
        async with write_lock(directory):
            return await _replace(directory, password, datetime.now(UTC), log, extra_names=extra_names)


def report_identity(identity: Identity, *, log: FilteringBoundLogger, now: datetime) -> None:
    """Log where an identity is, its dates, and whether it is valid."""
    log.info("identity.found", directory=identity.directory)
    log.info("identity.not_before", when=identity.not_before)
    log.info("identity.not_after", when=identity.not_after)
    if now < identity.not_before:
        log.warning("identity.not_yet_valid", when=identity.not_before)
    elif now > identity.not_after:
        log.warning("identity.expired", when=identity.not_after)
    else:
        log.info("identity.valid")


async def _find(directory: Path, password: str) -> _Found:
    database = Database(directory, password)
    if not database.exists:
        return None
    # Before it is read, so that a change meanwhile shows as a difference later.
    fingerprint = database.fingerprint()
    try:
        identities = await database.identities(NICKNAME)
    except DamagedDatabase as exc:
        return exc
    if not identities:
        return DamagedDatabase(f"no certificate {NICKNAME} with its private key in the database")
    certificate, key = max(identities, key=lambda identity: identity[0].not_valid_after_utc)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise _unusable(directory, f"the key of {NICKNAME} is not an RSA key, which modules are signed with")
    return Identity(directory, certificate, key, fingerprint)


def _is_usable(found: _Found, now: datetime) -> TypeGuard[Identity]:
    return isinstance(found, Identity) and found.is_valid(now)


def _report(found: _Found, directory: Path, *, log: FilteringBoundLogger, now: datetime) -> None:
    match found:
        case None:
            log.info("identity.missing", directory=directory)
        case DamagedDatabase():
            log.warning("identity.unusable", directory=directory, reason=found.problem)
        case Identity():
            report_identity(found, log=log, now=now)


def _tighten(directory: Path, log: FilteringBoundLogger) -> None:
    for path in tighten_own(directory):
        log.warning("identity.tightened", directory=path)


def _refuse_obsolete(directory: Path) -> None:
    # Of old SystemTap releases. dbm files beside a database of today do no harm.
    for name in _OBSOLETE[:1] if Database(directory).exists else _OBSOLETE:
        if path_exists(directory / name):
            raise _unusable(directory, f"{name} belongs to an obsolete certificate database")


async def _refuse_to_replace_others(directory: Path) -> None:
    # An operator may keep others in the same database, which would be lost.
    database = Database(directory)
    try:
        listing = await database.listing() if database.exists else []
    except DamagedDatabase:
        return
    others = sorted({nickname for nickname, _trust in listing} - {NICKNAME})
    if others:
        listed = ", ".join(others)
        raise _unusable(directory, f"a new identity would replace other certificates too: {listed}")


def _unusable(directory: Path, problem: str) -> IdentityError:
    remedy = "move the directory away, and the next start makes a new one, or name another with --ssl"
    return IdentityError(problem, where=str(directory), remedy=remedy)


async def _replace(
    directory: Path,
    password: str,
    now: datetime,
    log: FilteringBoundLogger,
    *,
    extra_names: Sequence[str] = (),
) -> Identity:
    """Make a new identity in place of what is there; the caller has the write lock."""
    await _refuse_to_replace_others(directory)
    log.info("identity.generating", directory=directory)
    make = functools.partial(make_certificate, host_name(), now, extra_names=extra_names)
    certificate, key = await anyio.to_thread.run_sync(make)
    identity = Identity(directory, certificate, key)
    async with replacing(directory) as staging:
        database = Database(staging, password)
        await database.create()
        await database.import_identity(certificate, key, NICKNAME, _TRUST)
        (staging / CERTIFICATE_FILE).write_bytes(identity.der)
        (staging / CERTIFICATE_FILE).chmod(PUBLIC_MODE)
    return attrs.evolve(identity, fingerprint=Database(directory).fingerprint())
