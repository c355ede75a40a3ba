"""``stap-server cert``, ``stap-gen-cert`` and ``stap-authorize-cert``: a server's certificate.

They work on the database directory, whether a server runs or not; a running server notices the change and
shows the new certificate to the next connection.
"""

from __future__ import annotations

import errno
import os
import pwd
import sys
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import anyio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from stapsrv.control.cli.commands.common import SILENT_LOG, Owner, VerbParser, absolute_path, export, guarded
from stapsrv.control.cli.console import encode_document
from stapsrv.errors import ConfigError, IdentityError, UsageError
from stapsrv.identity.certificate import CERTIFICATE_FILE, default_directory, make_identity, serial_pairs
from stapsrv.identity.key_types import check_certificate_kind
from stapsrv.identity.selfsigned import dns_names, extra_names_of, host_name
from stapsrv.identity.trust import (
    ALL_CLIENTS,
    MODULE_SIGNERS,
    authorize,
    default_client_directory,
    is_trusted,
    revoke,
)

_PROGRAM = "stap-server cert"
_WHOM = {
    "local": "your own client (default)",
    "all": "every user's client (root)",
    "signer": "staprun, as module signer (root)",
}
_OF_NO_USE = """\
Clients since SystemTap 4.0 use that only for users who can write there; others get SEC_ERROR_READ_ONLY.
Each of these runs: stap-authorize-cert {} ~/.systemtap/ssl/client
"""
_GEN_USAGE = """\
usage: stap-gen-cert [DIRECTORY] [DNS-NAME …]

Make a server's certificate, in place of the one that is there. DIRECTORY, which has a slash in it, is the
certificate database (default: ~/.systemtap/ssl/server). Names are those of this host, and those given.

example:
  stap-gen-cert /var/lib/stap-server/lab build.example.org
"""
_AUTHORIZE_USAGE = """\
usage: stap-authorize-cert CERTFILE DIRECTORY

Let the certificate database in DIRECTORY trust the server whose certificate is in CERTFILE.

example:
  stap-authorize-cert server.pem ~/.systemtap/ssl/client
"""


@guarded(_PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-server cert``; return the exit status."""
    given = _parser().parse_args(argv)
    owner = Owner.find(given.user, os.environ)
    directory = given.ssl or default_directory(owner.environ)
    # Files that root makes are of no use to the server, so root becomes the owner; reading needs no change.
    if given.verb == "renew" and os.geteuid() == 0 and owner.name != "root":
        return owner.run("cert", "renew", "--ssl", str(directory))
    match given.verb:
        case "show":
            anyio.run(_show, directory, owner, given.json)
        case "renew":
            anyio.run(_renew, directory, owner)
        case "export":
            encoding = Encoding.DER if given.der else Encoding.PEM
            data = _read_certificate(directory / CERTIFICATE_FILE).public_bytes(encoding)
            export(data, given.output, is_text=not given.der)
        case verb:
            anyio.run(_change_trust, verb, directory, _trust_database(given.whom, owner))
    return 0


@guarded("stap-gen-cert", usage=_GEN_USAGE)
def gen_cert(argv: Sequence[str]) -> int:
    """Run ``stap-gen-cert [DIRECTORY] [DNS-NAME …]``: make a certificate, replacing the old one.

    The directory is the user's own unless the first argument has a slash in it (SystemTap's program takes the
    first argument for the directory whatever it is). Names may be separated by blanks or commas.
    """
    words = list(argv)
    if words and words[0].startswith("-"):
        raise UsageError(f"unknown option {words[0]}", remedy="usage: stap-gen-cert [DIRECTORY] [DNS-NAME …]")
    directory = absolute_path(words.pop(0)) if words and "/" in words[0] else None
    names = [name for word in words for name in word.split(",") if name]
    owner = Owner.find(None, os.environ)
    if os.geteuid() == 0:
        raise UsageError(
            "a server's certificate belongs to its user, not to root",
            remedy=f"run it as that user: runuser -u {owner.name} -- stap-gen-cert",
        )
    directory = directory or default_directory(owner.environ)
    check_certificate_kind(owner.environ)
    try:
        anyio.run(partial(make_identity, directory, log=SILENT_LOG, extra_names=names))
    except ValueError as exc:
        raise UsageError(f"{', '.join(names)}: {exc}", remedy="give DNS names in ASCII") from exc
    return 0


@guarded("stap-authorize-cert", usage=_AUTHORIZE_USAGE)
def authorize_cert(argv: Sequence[str]) -> int:
    """Run ``stap-authorize-cert CERTFILE DIRECTORY``: let the database in DIRECTORY trust a server."""
    if len(argv) != 2:  # noqa: PLR2004 - a file and a directory
        raise UsageError(
            "a certificate and a database are needed", remedy="usage: stap-authorize-cert CERTFILE DIRECTORY"
        )
    certificate = _read_certificate(Path(argv[0]))
    anyio.run(partial(authorize, certificate, absolute_path(argv[1]), log=SILENT_LOG))
    return 0


def _parser() -> VerbParser:
    parser = VerbParser(
        _PROGRAM,
        description="Look after the certificate that a compile server shows and signs with.",
        example="authorize --signer",
        whose="whose servers",
    )
    parser.common.add_argument("--ssl", type=absolute_path, metavar="DIR", help="the certificate database")
    add = parser.add_verb
    showing = add("show", "show the certificate, and who trusts it on this host", example="--json")
    showing.add_argument("--json", action="store_true", help="print a JSON object")
    add("renew", "make a new certificate now; a running server takes it up by itself")
    writing = add(
        "export",
        "write the certificate out, for another host's stap --trust-servers or an administrator",
        example="-o server.pem",
    )
    form = writing.add_mutually_exclusive_group()
    form.add_argument("--pem", dest="der", action="store_false", default=False, help="as PEM text (default)")
    form.add_argument("--der", dest="der", action="store_true", help="as DER")
    writing.add_argument(
        "-o", dest="output", type=absolute_path, metavar="FILE", help="default: standard output"
    )
    authorizing = add("authorize", "make clients on this host trust the server", example="--all")
    revoking = add("revoke", "take that trust back", example="--all")
    for group in (authorizing.add_mutually_exclusive_group(), revoking.add_mutually_exclusive_group()):
        for whom, text in _WHOM.items():
            group.add_argument(f"--{whom}", dest="whom", action="store_const", const=whom, help=text)
    return parser


def _read_certificate(file: Path) -> x509.Certificate:
    try:
        data = file.read_bytes()
    except OSError as exc:
        remedy = "start a server once, or make one with stap-gen-cert" if exc.errno == errno.ENOENT else None
        raise IdentityError(f"cannot be read ({exc.strerror})", where=str(file), remedy=remedy) from exc
    for load in (x509.load_der_x509_certificate, x509.load_pem_x509_certificate):
        try:
            return load(data)
        except ValueError:
            continue
    raise IdentityError(
        "is not a certificate", where=str(file), remedy="give one in DER or PEM, such as stap.cert"
    )


async def _show(directory: Path, owner: Owner, as_json: bool) -> None:  # noqa: FBT001 - called through anyio.run
    certificate = _read_certificate(directory / CERTIFICATE_FILE)
    databases = {
        f"the client of {owner.name}": default_client_directory(owner.environ),
        "every client": ALL_CLIENTS,
        "staprun": MODULE_SIGNERS,
    }
    trusted_by = [name for name, database in databases.items() if await _trusts(certificate, database)]
    public = certificate.public_key()
    shown: dict[str, object] = {
        "directory": str(directory),
        "subject": certificate.subject.rfc4514_string(),
        "names": dns_names(certificate),
        "serial": serial_pairs(certificate),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(":"),
        "not_before": _iso(certificate.not_valid_before_utc),
        "not_after": _iso(certificate.not_valid_after_utc),
        "key": f"RSA {public.key_size} bits" if isinstance(public, RSAPublicKey) else type(public).__name__,
        "trusted_by": trusted_by,
    }
    if as_json:
        sys.stdout.write(encode_document(shown))
        return
    for name, value in shown.items():
        text = ", ".join(value) or "nobody" if isinstance(value, list) else str(value)
        sys.stdout.write(f"{name.replace('_', ' ') + ':':12} {text}\n")


async def _renew(directory: Path, owner: Owner) -> None:
    check_certificate_kind(owner.environ)
    try:
        names = extra_names_of(_read_certificate(directory / CERTIFICATE_FILE), host_name())
    except IdentityError:
        names = []
    identity = await make_identity(directory, log=SILENT_LOG, extra_names=names)
    # The owner's client trusts its own server from the start, and would lose that with the old certificate.
    await authorize(identity.certificate, default_client_directory(owner.environ), log=SILENT_LOG)
    sys.stdout.write(f"{identity.serial} is valid until {_iso(identity.not_after)}\n")


async def _change_trust(verb: str, directory: Path, place: Path) -> None:
    certificate = _read_certificate(directory / CERTIFICATE_FILE)
    if verb == "authorize":
        await authorize(certificate, place, log=SILENT_LOG)
        sys.stdout.write(f"{place} trusts {serial_pairs(certificate)}\n")
        if place == ALL_CLIENTS:
            sys.stdout.write(_OF_NO_USE.format(directory / CERTIFICATE_FILE))
    elif await revoke(certificate, place):
        sys.stdout.write(f"{place} no longer trusts {serial_pairs(certificate)}\n")
    else:
        sys.stdout.write(f"{place} did not trust {serial_pairs(certificate)}\n")


def _trust_database(whom: str | None, owner: Owner) -> Path:
    if whom in {None, "local"}:
        # The caller's client, whosever the server is.
        is_caller = os.geteuid() == pwd.getpwnam(owner.name).pw_uid
        return default_client_directory(owner.environ if is_caller else os.environ)
    if os.geteuid() != 0:
        raise ConfigError("only root decides for every user of this host", remedy="run it as root")
    return ALL_CLIENTS if whom == "all" else MODULE_SIGNERS


async def _trusts(certificate: x509.Certificate, place: Path) -> bool:
    try:
        return await is_trusted(certificate, place)
    except IdentityError:
        return False


def _iso(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
