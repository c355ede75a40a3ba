"""``stap-server mok``: the keys that sign modules for kernels under secure boot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from stapsrv.config.kernels import MODULES, installed_releases
from stapsrv.control.cli.commands.common import SILENT_LOG, Owner, VerbParser, absolute_path, export, guarded
from stapsrv.errors import IdentityError, UsageError
from stapsrv.identity.certificate import default_directory
from stapsrv.identity.key_types import MOK_VARIABLE, key_type_from
from stapsrv.identity.mok import (
    SIGN_FILE,
    Mok,
    create_mok,
    load_moks,
    moks_directory,
    sign_file_command,
    unfit_for_kernel,
)

_PROGRAM = "stap-server mok"
# A signature takes 10 ms.
_TRIAL_S = 30.0


@guarded(_PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-server mok``; return the exit status."""
    given = _parser().parse_args(argv)
    owner = Owner.find(given.user, os.environ)
    server = given.ssl or default_directory(owner.environ)
    directory = moks_directory(server)
    # Files that root makes are of no use to the server, so root becomes the owner.
    if given.verb == "new" and os.geteuid() == 0 and owner.name != "root":
        return owner.run("mok", "new", "--ssl", str(server))
    match given.verb:
        case "list":
            return _list(directory, as_json=given.json)
        case "new":
            kind = key_type_from(owner.environ, MOK_VARIABLE)
            mok = anyio.run(partial(create_mok, directory, log=SILENT_LOG, kind=kind, trial=_try))
            sys.stdout.write(f"{mok.fingerprint}\n")
        case "export":
            mok = _named(directory, given.fingerprint)
            export(mok.pem if given.pem else mok.der, given.output, is_text=given.pem)
    return 0


def _parser() -> VerbParser:
    parser = VerbParser(
        _PROGRAM,
        description="Look after the machine owner keys that modules are signed with for secure boot.",
        example="export -o key.x509, then mokutil --import it on the client's host",
        whose="whose keys",
    )
    parser.common.add_argument(
        "--ssl", type=absolute_path, metavar="DIR", help="the server's certificate database"
    )
    add = parser.add_verb
    listing = add("list", "list the keys, and what is wrong with those that cannot be used", example="--json")
    listing.add_argument("--json", action="store_true", help="print a JSON array")
    add("new", f"make one more key, of the kind that {MOK_VARIABLE} says (rsa)")
    writing = add("export", "write a key's certificate out, for mokutil --import", example="-o key.x509")
    writing.add_argument(
        "fingerprint", nargs="?", metavar="FINGERPRINT", help="of the key (default: the only one)"
    )
    writing.add_argument("--pem", action="store_true", help="as PEM text (default: DER, as mokutil takes it)")
    writing.add_argument(
        "-o", dest="output", type=absolute_path, metavar="FILE", help="default: standard output"
    )
    return parser


def _list(directory: Path, *, as_json: bool) -> int:
    """Print the keys; an unusable key makes the exit status 1."""
    listing = load_moks(directory)
    if as_json:
        shown = [
            {
                "fingerprint": mok.fingerprint,
                "not_after": mok.certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "file": str(mok.certificate_file),
            }
            for mok in listing.usable
        ]
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    else:
        for mok in listing.usable:
            until = mok.certificate.not_valid_after_utc.strftime("%Y-%m-%d")
            sys.stdout.write(f"{mok.fingerprint}  until {until}  {mok.certificate_file}\n")
        if not listing.usable:
            sys.stdout.write(f"no machine owner key in {directory}\n")
    for fault in listing.unusable:
        sys.stderr.write(f"{fault}\n")
    return 1 if listing.unusable else 0


async def _try(mok: Mok) -> None:
    """Raise IdentityError where kernels are installed, and the program of none can sign with a new key."""
    await anyio.to_thread.run_sync(_try_with_kernels, mok)


def _try_with_kernels(mok: Mok) -> None:
    failure = None
    for release in installed_releases():
        program = MODULES / release / "build" / SIGN_FILE
        with tempfile.TemporaryDirectory() as place:
            module = Path(place, "module.ko")
            module.write_bytes(b"trial")
            try:
                done = subprocess.run(
                    sign_file_command(program, mok, module),
                    check=False,
                    capture_output=True,
                    text=True,
                    timeout=_TRIAL_S,
                )
            except subprocess.TimeoutExpired:
                failure = unfit_for_kernel(program, f"it takes more than {_TRIAL_S:g} s")
                continue
            except OSError as exc:
                failure = unfit_for_kernel(program, exc.strerror or str(exc))
                continue
        if done.returncode == 0:
            return
        failure = unfit_for_kernel(program, done.stderr or f"status {done.returncode}")
    if failure is not None:
        raise failure


def _named(directory: Path, fingerprint: str | None) -> Mok:
    held = {mok.fingerprint: mok for mok in load_moks(directory).usable}
    if not held:
        raise IdentityError(
            "holds no machine owner key", where=str(directory), remedy="make one: stap-server mok new"
        )
    if fingerprint is None:
        if len(held) > 1:
            raise UsageError("there are several keys", remedy=f"name one: {', '.join(held)}")
        return next(iter(held.values()))
    if fingerprint.lower() not in held:
        raise UsageError(f"there is no key {fingerprint}", remedy=f"name one: {', '.join(held)}")
    return held[fingerprint.lower()]
