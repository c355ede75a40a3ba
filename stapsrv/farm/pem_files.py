"""A farm's certificates and private keys as files in PEM: made for their owner only, read with checks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from stapsrv.errors import ConfigError
from stapsrv.identity.selfsigned import key_in_pem
from stapsrv.system.atomic_file import create_file, sync
from stapsrv.text import printable

CERTIFICATE_SUFFIX, KEY_SUFFIX = ".pem", ".key"

_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
# Of a certificate or a key; a bundle with a company's whole chain fits.
_MAX_BYTES = 256 * 1024
_OF_OTHERS = stat.S_IRWXO
_OF_GROUP = stat.S_IRWXG
_GROUP_BEYOND_READING = stat.S_IWGRP | stat.S_IXGRP
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read_certificate(path: Path) -> x509.Certificate:
    """Read the first certificate in a file.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as exc:
        raise ConfigError("holds no certificate in PEM", where=str(path), remedy=_ISSUE_ANOTHER) from exc


def read_key(path: Path) -> PrivateKeyTypes:
    """Read a private key that only this user can read, or that root made readable for a group of his.

    Raises:
        ConfigError: it cannot be read, holds none, or others can read it.
    """
    data = _read(path, is_secret=True)
    try:
        return load_pem_private_key(data, None)
    except TypeError as exc:
        raise ConfigError(
            "the private key has a password",
            where=str(path),
            remedy="store it without one, for its owner only",
        ) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError("holds no private key in PEM", where=str(path), remedy=_ISSUE_ANOTHER) from exc


def make_directory(directory: Path) -> None:
    """Make a directory that only its owner can enter; one that is there must not be for others to change.

    Raises:
        ConfigError: it cannot be made or used.
    """
    try:
        directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except OSError as exc:
        raise _unusable(directory, exc) from exc
    if mode & _OTHERS_MAY_WRITE:
        raise ConfigError(
            "others may write to it, and so replace what is in it",
            where=str(directory),
            remedy=f"chmod go-w {directory}",
        )


def create_pair(
    directory: Path, name: str, certificate: x509.Certificate, key: CertificateIssuerPrivateKeyTypes
) -> None:
    """Write ``NAME.key`` and ``NAME.pem``, both with mode 0600, to the disk; neither may be there.

    The certificate comes last: where it is, the key is whole.

    Raises:
        ConfigError: one is there already, or cannot be written; neither was changed.
    """
    key_file, certificate_file = directory / f"{name}{KEY_SUFFIX}", directory / f"{name}{CERTIFICATE_SUFFIX}"
    _create(key_file, key_in_pem(key))
    try:
        _create(certificate_file, certificate.public_bytes(Encoding.PEM))
        sync(directory)
    except BaseException:
        key_file.unlink(missing_ok=True)
        raise


_ISSUE_ANOTHER = "name another, or make one: stap-farm ca issue"


def _create(path: Path, content: bytes) -> None:
    try:
        create_file(path, content, mode=_FILE_MODE)
    except FileExistsError as exc:
        raise ConfigError(
            "is there already, and is not overwritten",
            where=str(path),
            remedy="move it away, or take another name",
        ) from exc
    except OSError as exc:
        raise _unusable(path, exc) from exc


def _read(path: Path, *, is_secret: bool = False) -> bytes:
    try:
        # A pipe is refused below, and not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise _unusable(path, exc) from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError("is no file", where=str(path), remedy=_ISSUE_ANOTHER)
        if is_secret:
            _refuse_exposed(path, status)
        return os.read(fd, _MAX_BYTES)
    except OSError as exc:
        raise _unusable(path, exc) from exc
    finally:
        os.close(fd)


def _refuse_exposed(path: Path, status: os.stat_result) -> None:
    # Kubernetes gives a mounted secret to root and the pod's group.
    is_roots = status.st_uid == 0 and os.geteuid() != 0
    exposed = _OF_OTHERS | (_GROUP_BEYOND_READING if is_roots else _OF_GROUP)
    if status.st_mode & exposed:
        raise ConfigError(
            "is a private key, and others than its owner have access to it",
            where=str(path),
            remedy=f"chmod 600 {path}, and issue another if anybody may have read it",
        )


def _unusable(path: Path, exc: OSError) -> ConfigError:
    where = Path(os.fsdecode(exc.filename)) if exc.filename else path
    remedy = "make it with stap-farm ca" if isinstance(exc, FileNotFoundError) else "see who may use it"
    return ConfigError(f"cannot be used ({exc.strerror})", where=printable(str(where)), remedy=remedy)
