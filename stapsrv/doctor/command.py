"""``stap-server doctor``: every question that stands between a client and its module, and the remedies."""

from __future__ import annotations

import argparse
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import anyio

from stapsrv.config.kernels import host_release, is_release_name
from stapsrv.control.accounts import environment_for, runnable_account
from stapsrv.control.owner import LineParser, Owner, absolute_path, guarded, run_as_owner
from stapsrv.doctor.findings import Finding, document_of, failure, fault, has_failed, lines_of, summary_line
from stapsrv.doctor.kernels import check_compiling, check_releases
from stapsrv.doctor.network import check_announcements
from stapsrv.doctor.patient import Patient
from stapsrv.doctor.places import check_directories, check_space, check_user
from stapsrv.doctor.service import (
    check_certificates,
    check_configuration,
    check_listeners,
    check_ports,
    check_supervisor,
)
from stapsrv.doctor.system import check_clock, check_containment, check_files
from stapsrv.doctor.tools import check_stap, check_tools
from stapsrv.doctor.visit import Destination, walk
from stapsrv.errors import StapsrvError, UsageError

Check = Callable[[Patient], AsyncIterator[Finding]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("stap", check_stap),
    ("tools", check_tools),
    ("user", check_user),
    ("directories", check_directories),
    ("room", check_space),
    ("clock", check_clock),
    ("open files", check_files),
    ("containment", check_containment),
    ("configured servers", check_configuration),
    ("releases", check_releases),
    ("certificate", check_certificates),
    ("supervisor", check_supervisor),
    ("ports", check_ports),
    ("listeners", check_listeners),
    ("announced (mDNS)", check_announcements),
    ("compiling", check_compiling),
)
"""In the order of the answers: the quick first. The names are for those that come to no answer."""

_GREATEST_PORT = 65535


def main(argv: Sequence[str], *, program: str = "stap-server doctor") -> int:
    """Carry out ``stap-server doctor …``; returns 1 if there is any failure, 2 for bad usage."""
    return guarded(program, lambda: _doctor(program, argv))


async def examine(patient: Patient, tell: Callable[[Finding], object]) -> list[Finding]:
    """Ask every question, one after the other.

    Args:
        patient: who is asked.
        tell: called with each answer when it is there.
    """
    findings = []
    for name, check in CHECKS:
        try:
            async for finding in check(patient):
                findings.append(finding)
                tell(finding)
        except StapsrvError as exc:
            findings.append(fault(name, exc))
            tell(findings[-1])
        except OSError as exc:
            findings.append(failure(name, f"{exc.filename or 'the system'}: {exc.strerror or exc}"))
            tell(findings[-1])
    return findings


def _doctor(program: str, argv: Sequence[str]) -> int:
    given = _parser(program).parse_args(argv)
    if given.client is None and given.release is not None:
        raise UsageError("--release is for --client", remedy=f"see {program} --help")
    if given.client is not None:
        host, port = given.client
        destination = Destination(host, port, given.release or host_release())
        return _tell(lambda tell: _visit(destination, os.environ, tell), as_json=given.json)
    owner = Owner.find(given.user, os.environ)
    if os.geteuid() == 0 and owner.name != "root":
        return _as_owner(owner.name, given)
    config_file = None if given.config is None else str(given.config)
    patient = Patient(config_file, os.environ, compiles=given.compile)
    return _tell(lambda tell: anyio.run(examine, patient, tell), as_json=given.json)


def _as_owner(name: str, given: argparse.Namespace) -> int:
    """Examine as the servers' user: what root can read, write and run says nothing of what a server can."""
    account = runnable_account(name, os.environ)
    words = ["--json"] if given.json else []
    words += [] if given.compile else ["--no-compile"]
    words += [] if given.config is None else ["-c", str(given.config)]
    owner = Owner(name=name, environ=environment_for(account, os.environ))
    return run_as_owner(owner, "stapsrv.doctor.command", words)


def _tell(find: Callable[[Callable[[Finding], object]], list[Finding]], *, as_json: bool) -> int:
    """Print what is found, for people as soon as it is; returns the exit status."""
    findings = find(_ignore if as_json else _print)
    sys.stdout.write(document_of(findings) if as_json else summary_line(findings) + "\n")
    return int(has_failed(findings))


def _visit(
    destination: Destination, environ: Mapping[str, str], tell: Callable[[Finding], object]
) -> list[Finding]:
    async def visit() -> list[Finding]:
        findings = []
        async for finding in walk(destination, environ):
            findings.append(finding)
            tell(finding)
        return findings

    return anyio.run(visit)


def _print(finding: Finding) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines_of(finding)))
    sys.stdout.flush()


def _ignore(_finding: Finding) -> None:
    """Everything is told at the end."""


def _parser(program: str) -> LineParser:
    parser = LineParser(
        prog=program,
        description="Ask what stands between a client and its module, and say what to do about it.",
        epilog=f"example: {program} --client build.example.org:5001; "
        "exit status: 0 no failure, 1 some, 2 bad usage",
    )
    parser.add_argument(
        "-c", dest="config", type=absolute_path, metavar="FILE", help="global configuration file"
    )
    parser.add_argument(
        "-u", dest="user", metavar="USER", help="whose servers (default: yours, for root stap-server's)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="compile nothing, which takes seconds"
    )
    parser.add_argument(
        "--client", type=_address, metavar="HOST:PORT", help="walk a client's way to a server instead"
    )
    parser.add_argument(
        "--release",
        type=_release,
        metavar="R",
        help="with --client: the kernel release (default: this host's)",
    )
    return parser


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) <= _GREATEST_PORT):
        raise ArgumentTypeError(
            f"{text!r} is not HOST:PORT, such as build.example.org:5001 or [fe80::1]:5001"
        )
    return host, int(port)


def _release(text: str) -> str:
    if not is_release_name(text):
        raise ArgumentTypeError(f"{text!r} is not a kernel release such as 6.1.0-56-amd64")
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
