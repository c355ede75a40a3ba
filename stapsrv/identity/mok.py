"""Machine owner keys, which sign modules for kernels that load no others (secure boot).

Each key has a directory ``moks/FINGERPRINT`` with ``signing_key.x509`` (DER) and ``signing_key.priv`` (PEM);
FINGERPRINT is the certificate's, as mokutil shows it. A key that cannot be used is reported and left alone,
and none is ever replaced. Modes and certificates are like SystemTap 4.8's (PROTOCOL, machine owner keys), the
kinds of keys like 5.6's (:mod:`stapsrv.identity.key_types`).
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeAlias

import anyio.to_thread
import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.typing import FilteringBoundLogger

from stapsrv.errors import IdentityError
from stapsrv.identity.key_types import MOK_VARIABLE, KeyType, generate_key, load_private_key
from stapsrv.identity.locked_directory import explain_os_errors, path_exists, staging_directory, write_lock
from stapsrv.identity.selfsigned import key_in_pem, self_signed
from stapsrv.system.atomic_file import create_file
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.trees import is_directory

CERTIFICATE_FILE = "signing_key.x509"
KEY_FILE = "signing_key.priv"
GENKEY_FILE = "x509.genkey"
# In a build tree: the kernel's own program, which appends a signature to a module.
SIGN_FILE = "scripts/sign-file"

_KEY_BITS = 4096
_LIFETIME = timedelta(days=36500)
_DIGEST = "sha512"
_ORGANISATION = "Systemtap"
_COMMON_NAME = "Systemtap module signing key"
_SUBJECT = x509.Name(
    [
        x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, _ORGANISATION),
        x509.NameAttribute(x509.NameOID.COMMON_NAME, _COMMON_NAME),
    ]
)
_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)

_GENKEY = f"""\
# What the machine owner keys in this directory are like. stapsrv makes them by itself; to make one by hand:
#   openssl req -new -x509 -nodes -utf8 -sha256 -days {_LIFETIME.days} -config {GENKEY_FILE} \\
#     -outform DER -out {CERTIFICATE_FILE} -keyout {KEY_FILE}
# and put the two into a directory that has the certificate's SHA-1 fingerprint as its name (xx:xx:...).
[req]
prompt = no
default_bits = {_KEY_BITS}
distinguished_name = subject
x509_extensions = extensions
[subject]
O = {_ORGANISATION}
CN = {_COMMON_NAME}
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
"""


@attrs.frozen
class Mok:
    """A usable machine owner key: the directory of its files, and the certificate that kernels know it by."""

    directory: Path
    certificate: x509.Certificate

    @property
    def fingerprint(self) -> str:
        """The certificate's SHA-1 in lower case, ``xx:xx:…``."""
        # A name that mokutil and SystemTap gave it, not a protection.
        return self.certificate.fingerprint(hashes.SHA1()).hex(":")  # noqa: S303

    @property
    def der(self) -> bytes:
        """The certificate as ``mokutil --import`` takes it."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The certificate as text."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def certificate_file(self) -> Path:
        """The file with the certificate, in DER."""
        return self.directory / CERTIFICATE_FILE

    @property
    def key_file(self) -> Path:
        """The file with the private key, in PEM."""
        return self.directory / KEY_FILE


@attrs.frozen
class MokListing:
    """The keys of a directory in order of their fingerprints, and why others cannot be used."""

    usable: tuple[Mok, ...] = ()
    unusable: tuple[IdentityError, ...] = ()


# Signs something with a new key before anybody is offered it; raises IdentityError where that fails.
Trial: TypeAlias = Callable[[Mok], Awaitable[None]]


def moks_directory(server_directory: Path) -> Path:
    """Return the directory of machine owner keys beside a server's database."""
    return server_directory / "moks"


def load_moks(directory: Path) -> MokListing:
    """Load every key in ``directory``, which need not exist."""
    try:
        shown = [entry for entry in directory.iterdir() if entry.name[0] != "."]
        entries = sorted(filter(is_directory, shown))
    except FileNotFoundError:
        return MokListing()
    except OSError as exc:
        return _unreadable(directory, exc)
    usable, unusable = [], []
    for entry in entries:
        try:
            usable.append(_load(entry))
        except IdentityError as exc:
            unusable.append(exc)
        except OSError as exc:
            unusable.append(_unusable(entry, f"{exc.filename} cannot be read ({exc.strerror})"))
    return MokListing(tuple(usable), tuple(unusable))


async def create_mok(
    directory: Path, *, log: FilteringBoundLogger, kind: KeyType = KeyType.RSA, trial: Trial
) -> Mok:
    """Make another key in ``directory``, which is made if missing.

    A key that is not of RSA, which every kernel's program signs with, has to pass ``trial``.

    Raises:
        IdentityError: it cannot be made or written, or another process keeps changing the directory.

    Cancellation: the key is either complete or missing.
    """
    with explain_os_errors(directory):
        async with write_lock(directory):
            return await _make(directory, kind, trial, log)


def sign_file_command(program: Path, key: Mok, module: Path) -> list[str]:
    """Return the command by which a build tree's ``SIGN_FILE`` signs a module."""
    return [str(program), _DIGEST, str(key.key_file), str(key.certificate_file), str(module)]


def unfit_for_kernel(program: Path, said: str) -> IdentityError:
    """Return the error of a new key that ``program`` cannot sign with, by what that said."""
    return IdentityError(
        f"cannot sign with the kind of key that {MOK_VARIABLE} asks for ({said.strip().splitlines()[-1]})",
        where=str(program),
        remedy="ML-DSA wants OpenSSL 3.5 and the headers of Linux 7.0; use rsa",
    )


class MokStore:
    """The keys of one directory, which need not exist; each that cannot be used is logged once.

    New ones are of the given ``kind``.
    """

    def __init__(self, directory: Path, log: FilteringBoundLogger, *, kind: KeyType = KeyType.RSA) -> None:
        self._directory = directory
        self._log = log
        self._kind = kind
        self._files = BlockingCalls()
        self._reported: frozenset[str] = frozenset()

    async def find(self, fingerprints: Sequence[str]) -> Mok | None:
        """Return the first usable key with one of the fingerprints, in their order; None if there is none."""
        found = {mok.fingerprint: mok for mok in await self._list()}
        return next((found[fingerprint] for fingerprint in fingerprints if fingerprint in found), None)

    async def get_or_create(self, trial: Trial) -> Mok:
        """Return a key to enrol on a client's host, made if there is none; of several processes one makes it.

        Raises:
            IdentityError: there is none, and none could be made, or it failed ``trial`` (:func:`create_mok`).
        """
        if found := await self._list():
            return found[0]
        with explain_os_errors(self._directory):
            async with write_lock(self._directory):
                if found := await self._list():
                    return found[0]
                return await _make(self._directory, self._kind, trial, self._log)

    async def _list(self) -> tuple[Mok, ...]:
        try:
            listing = await self._files.run(partial(load_moks, self._directory))
        except TimeoutError as exc:
            listing = _unreadable(self._directory, exc)
        reasons = {str(error): error for error in listing.unusable}
        for text in reasons.keys() - self._reported:
            error = reasons[text]
            reason = f"{error.problem}; {error.remedy}"
            self._log.warning("mok.unusable", directory=error.where, reason=reason)
        self._reported = frozenset(reasons)
        return listing.usable


def _load(directory: Path) -> Mok:
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _unusable(directory, f"others can write to it (mode {mode:04o})", f"chmod 700 {directory}")
    try:
        mok = Mok(directory, x509.load_der_x509_certificate((directory / CERTIFICATE_FILE).read_bytes()))
        public_key = mok.certificate.public_key()
    except ValueError as exc:
        raise _unusable(directory, f"{CERTIFICATE_FILE} holds no certificate in DER") from exc
    except UnsupportedAlgorithm as exc:
        raise _unusable(directory, "the libraries of this installation do not know its kind of key") from exc
    if directory.name != mok.fingerprint:
        problem = "its name is not the fingerprint of its certificate"
        raise _unusable(directory, problem, f"rename it to {mok.fingerprint}")
    mode = stat.S_IMODE(mok.key_file.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        problem = f"{KEY_FILE} is open to others (mode {mode:04o})"
        raise _unusable(directory, problem, f"chmod 600 {mok.key_file}")
    try:
        # Nobody else can write it.
        key = load_private_key(mok.key_file.read_bytes())
    except (TypeError, ValueError, UnsupportedAlgorithm) as exc:
        # A TypeError means that it is encrypted.
        raise _unusable(directory, f"{KEY_FILE} holds no private key in PEM without a password") from exc
    if key.public_key() != public_key:
        raise _unusable(directory, f"{KEY_FILE} is not the key of {CERTIFICATE_FILE}")
    return mok


def _unreadable(directory: Path, exc: OSError) -> MokListing:
    return MokListing(unusable=(_unusable(directory, f"cannot be read ({exc.strerror})"),))


def _unusable(directory: Path, problem: str, remedy: str = "mend it or move it away") -> IdentityError:
    return IdentityError(problem, where=str(directory), remedy=remedy)


async def _make(directory: Path, kind: KeyType, trial: Trial, log: FilteringBoundLogger) -> Mok:
    # The caller has the write lock.
    log.info("mok.generating", kind=kind.value, directory=directory)
    with staging_directory(directory) as staging:
        staged = await anyio.to_thread.run_sync(_make_files, staging, kind)
        if kind is not KeyType.RSA:
            await trial(staged)
        mok = await anyio.to_thread.run_sync(_publish, staged, directory)
    log.info("mok.generated", fingerprint=mok.fingerprint)
    return mok


def _make_files(staging: Path, kind: KeyType) -> Mok:
    certificate, key = _make_certificate(kind, datetime.now(UTC))
    staged = Mok(staging, certificate)
    create_file(staged.certificate_file, staged.der, mode=0o644)
    create_file(staged.key_file, key_in_pem(key), mode=0o600)
    return staged


def _publish(staged: Mok, directory: Path) -> Mok:
    if not path_exists(directory / GENKEY_FILE):
        create_file(staged.directory / GENKEY_FILE, _GENKEY.encode(), mode=0o644)
        (staged.directory / GENKEY_FILE).rename(directory / GENKEY_FILE)
    return Mok(staged.directory.rename(directory / staged.fingerprint), staged.certificate)


def _make_certificate(
    kind: KeyType, now: datetime
) -> tuple[x509.Certificate, CertificateIssuerPrivateKeyTypes]:
    key = generate_key(kind, rsa_bits=_KEY_BITS)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    extensions = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        *((extension, False) for extension in (_KEY_USAGE, identifier, issuer)),
    ]
    serial = x509.random_serial_number()
    certificate = self_signed(
        key, _SUBJECT, extensions, serial=serial, begin=now, lifetime=_LIFETIME, digest=kind.digest
    )
    return certificate, key
