"""NSS certificate databases, by the programs that read and write them: certutil and pk12util.

Passwords and keys reach them in memory files, never on a command line or in a file that others can read.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen
from tempfile import TemporaryDirectory
from typing import TypeAlias

import anyio
import anyio.to_thread
import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

from stapsrv.errors import IdentityError
from stapsrv.identity.diagnosis import diagnose
from stapsrv.identity.locked_directory import path_exists, replacing
from stapsrv.identity.memfd import MemoryFile, memory_file
from stapsrv.identity.pkcs12 import private_keys

# Inode, time of change in ns, and size of each of a database's files.
Fingerprint: TypeAlias = tuple[tuple[int, int, int], ...]

# Those that hold certificates and keys.
KEPT_FILES = ("cert9.db", "key4.db")
DATABASE_FILES = (*KEPT_FILES, "pkcs11.txt")
PUBLIC_MODE = 0o644

# The tools take 5 to 300 ms, and give up on a locked database after 2 s.
_TOOL_TIMEOUT_S = 30.0
# For a killed tool to end; only one that is stuck in the kernel takes longer.
_REAP_S = 5.0

_ERROR_CODE = re.compile(r"\b(?:SEC|SSL|PR)_[A-Z0-9_]+")
_TRUST = re.compile(r"[a-zA-Z]*,[a-zA-Z]*,[a-zA-Z]*")
_NO_SUCH_CERTIFICATE = "Could not find cert"
_NO_KEY = ("no user certs from given nickname", "SEC_ERROR_UNKNOWN_CERT")


class WrongPassword(IdentityError):
    """A database has another password than the one given, or any at all."""


@attrs.frozen
class Database:
    """The NSS database in one directory, with the password of its private keys, empty for none.

    Every method may raise IdentityError: a tool is not installed or overran its deadline, the password is
    wrong, the database is locked or refused; DamagedDatabase if its contents are lost. PermissionError passes
    through.
    """

    directory: Path
    password: str = attrs.field(default="", repr=False)

    @property
    def exists(self) -> bool:
        """Whether there is a database, or half of one."""
        return any(path_exists(self.directory / name) for name in KEPT_FILES)

    def fingerprint(self) -> Fingerprint:
        """Return a value that changes when the files are replaced or written; () if one is missing."""
        found = []
        for name in KEPT_FILES:
            try:
                status = (self.directory / name).stat()
            except OSError:
                return ()
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    async def create(self, *, file_mode: int = 0o600) -> None:
        """Make a new, empty database in the directory, which exists; all its files appear at once.

        Raises:
            IdentityError: there is one already, or for the reasons of the class.
        """
        if self.exists:
            raise IdentityError("holds a certificate database already", where=str(self.directory))
        async with replacing(self.directory) as staging:
            # With ".", NSS writes no path into pkcs11.txt that would be wrong after the move.
            await self._modify("-N", where=("-d", "sql:."), cwd=staging)
            for name in DATABASE_FILES:
                (staging / name).chmod(file_mode)

    async def listing(self) -> list[tuple[str, str]]:
        """Return each certificate's nickname and trust, as ``certutil -L`` shows them (``CPu,u,Cu``)."""
        done = await _run(("certutil", "-L", *self._sql_option))
        self._check(done)
        lines = done.stdout.decode(errors="replace").splitlines()
        columns = (line.rstrip().rpartition(" ") for line in lines)
        return [
            (name.rstrip(" "), trust) for name, blank, trust in columns if blank and _TRUST.fullmatch(trust)
        ]

    async def certificates(self, nickname: str) -> list[x509.Certificate]:
        """Return the certificates with this nickname: none, one, or several generations of one."""
        done = await _run(("certutil", "-L", "-a", "-n", nickname, *self._sql_option))
        if done.returncode and _NO_SUCH_CERTIFICATE in _output(done):
            return []
        self._check(done)
        try:
            return x509.load_pem_x509_certificates(done.stdout)
        except ValueError as exc:
            raise self._unreadable(f"the certificate {nickname}, as certutil shows it,", exc) from exc

    async def _private_keys(self, nickname: str) -> list[PrivateKeyTypes]:
        wrapping = _new_password()
        with (
            memory_file() as bundle,
            memory_file(wrapping + b"\n") as wrapped_with,
            memory_file(self._password_line) as own,
            self._open_to_pk12util() as where,
        ):
            # Not the certificate, which is not needed: encrypting it would cost another 0.1 s.
            options = ("-C", "NONE", "-n", nickname, *where, "-k", own.path, "-w", wrapped_with.path)
            done = await _run(("pk12util", "-o", bundle.path, *options), files=(bundle, own, wrapped_with))
            if done.returncode and any(output in _output(done) for output in _NO_KEY):
                return []
            self._check(done)
            exported = bundle.read()
        try:
            return await anyio.to_thread.run_sync(private_keys, exported, wrapping)
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise self._unreadable(f"the private key of {nickname}, as pk12util exports it,", exc) from exc

    async def identities(self, nickname: str) -> list[tuple[x509.Certificate, PrivateKeyTypes]]:
        """Return the certificates with this nickname whose private key is there, with it; 0.3 s a key."""
        certificates = await self.certificates(nickname)
        keys = await self._private_keys(nickname) if certificates else []
        return [
            (certificate, key)
            for certificate in certificates
            for key in keys
            if certificate.public_key() == key.public_key()
        ]

    async def import_identity(
        self, certificate: x509.Certificate, key: RSAPrivateKey, nickname: str, trust: str
    ) -> None:
        """Store a certificate and its private key, with this trust (``PCu,,PCu``)."""
        wrapping = _new_password()
        content = (nickname.encode(), key, certificate, None, BestAvailableEncryption(wrapping))
        bundle = await anyio.to_thread.run_sync(serialize_key_and_certificates, *content)
        with (
            memory_file(bundle) as source,
            memory_file(wrapping + b"\n") as wrapped_with,
            memory_file(self._password_line) as own,
        ):
            options = ("-i", source.path, *self._sql_option, "-k", own.path, "-w", wrapped_with.path)
            self._check(await _run(("pk12util", *options), files=(source, own, wrapped_with)))
        await self._modify("-M", "-n", nickname, "-t", trust)

    async def import_certificate(self, certificate: x509.Certificate, nickname: str, trust: str) -> None:
        """Store a certificate with this trust (``P,P,P``), or set the trust of one that is there already.

        Others with the same nickname stay; NSS demands that their subjects are equal to the byte.
        """
        with memory_file(certificate.public_bytes(Encoding.DER)) as source:
            await self._modify("-A", "-n", nickname, "-t", trust, "-i", source.path, files=(source,))

    async def remove_certificates(self, nickname: str) -> None:
        """Remove every certificate with this nickname, but no private key."""
        while nickname in {listed for listed, _trust in await self.listing()}:
            await self._modify("-D", "-n", nickname)

    async def _modify(
        self,
        *options: str,
        files: Sequence[MemoryFile] = (),
        where: tuple[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Have certutil change the database; ``where`` is the option that names it."""
        with memory_file(self._password_line) as own:
            command = ("certutil", *options, *(where or self._sql_option), "-f", own.path)
            self._check(await _run(command, files=(*files, own), cwd=cwd))

    @property
    def _sql_option(self) -> tuple[str, str]:
        # Always with "sql:", so that no environment variable makes it an old dbm database.
        return ("-d", f"sql:{self.directory}")

    @property
    def _password_line(self) -> bytes:
        # An empty line for none: without a file the tools would ask the terminal.
        return self.password.encode() + b"\n"

    @contextmanager
    def _open_to_pk12util(self) -> Iterator[tuple[str, str]]:
        # pk12util opens a database for writing even to read it. Where it may not (a read-only mount), it gets
        # a private copy.
        if all(os.access(self.directory / name, os.W_OK) for name in KEPT_FILES):
            yield self._sql_option
            return
        with TemporaryDirectory(prefix="stapsrv-") as copy:  # 0700
            for name in DATABASE_FILES:
                if path_exists(self.directory / name):
                    shutil.copyfile(self.directory / name, Path(copy) / name)
            yield ("-d", f"sql:{copy}")

    def _unreadable(self, thing: str, reason: Exception) -> IdentityError:
        return IdentityError(
            f"{thing} cannot be read ({reason})",
            where=str(self.directory),
            remedy="report this with the versions of libnss3-tools and of Python's cryptography",
        )

    def _check(self, done: CompletedProcess[bytes]) -> None:
        if done.returncode == 0:
            return
        output = _output(done)
        where = str(self.directory)
        if "SEC_ERROR_BAD_PASSWORD" in output:
            problem = "the password is wrong" if self.password else "the database is protected by a password"
            raise WrongPassword(problem, where=where, remedy="give its password (-P)")
        if "SEC_ERROR_READ_ONLY" in output:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), where)
        if error := diagnose(self.directory):
            raise error
        tool = Path(done.args[0]).name
        code = _ERROR_CODE.search(output)
        reason = code.group() if code else output.strip().replace("\n", " ")
        raise IdentityError(
            f"{tool} failed on the certificate database ({reason})",
            where=where,
            remedy=f"see: certutil -L -d 'sql:{where}'",
        )


async def _run(
    command: Sequence[str], *, files: Sequence[MemoryFile] = (), cwd: Path | None = None
) -> CompletedProcess[bytes]:
    """Run an NSS tool without a terminal, and with a umask that makes its files private."""
    # With subprocess in a thread, since not every event loop's own processes can be given a umask.
    tool = command[0]
    try:
        process = _start(command, files, cwd)
        try:
            with anyio.fail_after(_TOOL_TIMEOUT_S):
                said = await anyio.to_thread.run_sync(process.communicate, abandon_on_cancel=True)
            return CompletedProcess(command, process.returncode, *said)
        finally:
            if process.returncode is None:
                process.kill()
                with anyio.move_on_after(_REAP_S, shield=True):
                    await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
    except FileNotFoundError as exc:
        remedy = "install NSS's tools (Debian: libnss3-tools, Fedora: nss-tools)"
        raise IdentityError("is not installed", where=tool, remedy=remedy) from exc
    except TimeoutError as exc:
        problem = f"did not end within {_TOOL_TIMEOUT_S:g} s"
        raise IdentityError(problem, where=tool, remedy="try again") from exc


def _start(command: Sequence[str], files: Sequence[MemoryFile], cwd: Path | None) -> Popen[bytes]:
    return Popen(
        command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        cwd=cwd,
        pass_fds=[file.descriptor for file in files],
        start_new_session=True,
        umask=0o077,
    )


def _new_password() -> bytes:
    """Return a password for a temporary bundle, in ASCII, on which all encodings agree."""
    return secrets.token_hex(32).encode()


def _output(done: CompletedProcess[bytes]) -> str:
    return (done.stdout + b"\n" + done.stderr).decode(errors="replace")
