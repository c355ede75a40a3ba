"""``stap-server doctor``: checks everything that a client needs to get its module, and says what to do."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import BinaryIO, NamedTuple, TypeAlias

import anyio

from stapsrv.config.kernels import host_release, is_release_name
from stapsrv.control.cli.commands.common import LineParser, Owner, absolute_path, guarded
from stapsrv.control.client.accounts import environment_for, runnable_account
from stapsrv.doctor import farm, host, kernels, service
from stapsrv.doctor.context import DoctorContext, load
from stapsrv.doctor.findings import Finding, document_of, error, failure, has_failed, lines_of, summary_line
from stapsrv.doctor.remote import Destination, check_remote
from stapsrv.errors import StapsrvError
from stapsrv.system.blocking import BlockingCalls

_PROGRAM = "stap-server doctor"
_QUICK_S = 20.0
_SLOW_S = 150.0
_MAX_PORT = 65535

Report: TypeAlias = Callable[[Finding], object]


class Check(NamedTuple):
    """A row of the table of checks; ``name`` is the question of a finding where the check itself fails."""

    name: str
    function: Callable[[DoctorContext], AsyncIterator[Finding]]
    # For one that reads files, since a file system may hang; None for one that has deadlines of its own, and
    # children to clean up.
    timeout_s: float | None = None


# In the order of the output: the quick ones first.
CHECKS = (
    Check("stap", host.check_stap),
    Check("tools", host.check_tools),
    Check("user", host.check_user, _QUICK_S),
    Check("directories", host.check_directories, _QUICK_S),
    Check("room", host.check_space, _QUICK_S),
    Check("clock", host.check_clock, _QUICK_S),
    Check("open files", host.check_files, _QUICK_S),
    Check("containment", host.check_containment),
    Check("configured servers", service.check_configuration, _SLOW_S),
    Check("farm", farm.check_farms, _SLOW_S),
    Check("releases", kernels.check_releases, _QUICK_S),
    Check("certificate", service.check_certificates, _SLOW_S),
    Check("supervisor", service.check_supervisor, _QUICK_S),
    Check("ports", service.check_ports, _QUICK_S),
    Check("listeners", service.check_listeners),
    Check("announced (mDNS)", service.check_announcements, _SLOW_S),
    Check("compiling", kernels.check_compiling),
)


@guarded(_PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-server doctor …``; returns the exit status: 1 after any failure, 2 for bad usage."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.client is None and given.release is not None:
        parser.error("--release is for --client")
    if given.client is not None:
        if given.config is not None or given.user is not None or not given.compile:
            parser.error("-c, -u and --no-compile are for this host, not for --client")
        name, port = given.client
        destination = Destination(name, port, given.release or host_release())
        return _print_all(partial(_check_remote, destination), as_json=given.json)
    words = [*(["--json"] if given.json else []), *([] if given.compile else ["--no-compile"])]
    status = run_as_server_user(given, "doctor", *words)
    if status is not None:
        return status
    context = anyio.run(partial(load, given.config, os.environ, compiles=given.compile))
    return _print_all(partial(run_checks, context), as_json=given.json)


async def run_checks(context: DoctorContext, report: Report) -> None:
    """Run every check, one after the other; ``report`` is called with each finding at once."""
    files = BlockingCalls()
    for check in CHECKS:
        try:
            await _run_check(check, context, report, files)
        except StapsrvError as exc:
            report(error(check.name, exc))
        except TimeoutError as exc:
            report(failure(check.name, exc.strerror or str(exc), "see which file system hangs"))
        except BrokenPipeError:
            # Nobody reads the output any more; no check raises this itself.
            raise
        except OSError as exc:
            report(failure(check.name, f"{exc.filename or 'the system'}: {exc.strerror or exc}"))


def owner_parser(program: str, *, description: str, epilog: str) -> LineParser:
    """Return a parser with the options that say whose servers: ``-c`` and ``-u``."""
    parser = LineParser(prog=program, description=description, epilog=epilog)
    parser.add_argument(
        "-c", dest="config", type=absolute_path, metavar="FILE", help="global configuration file"
    )
    whose = "whose servers (default: yours, for root stap-server's)"
    parser.add_argument("-u", dest="user", metavar="USER", help=whose)
    return parser


def run_as_server_user(given: argparse.Namespace, *words: str, output: BinaryIO | None = None) -> int | None:
    """Run ``stap-server`` as the user whom :func:`owner_parser` found; None if that is for this process."""
    # Root may read, write and run what a server may not.
    owner = Owner.find(given.user, os.environ)
    if os.geteuid() != 0 or owner.name == "root":
        return None
    account = runnable_account(owner.name, os.environ)
    owner = Owner(name=owner.name, environ=environment_for(account, os.environ))
    config = [] if given.config is None else ["-c", str(given.config)]
    return owner.run(*words, *config, output=output)


async def _run_check(check: Check, context: DoctorContext, report: Report, files: BlockingCalls) -> None:
    if check.timeout_s is None:
        if files.abandoned:
            raise TimeoutError(errno.ETIMEDOUT, "is not checked: it might hang as an earlier check does")
        async for finding in check.function(context):
            report(finding)
        return
    # With an event loop of its own in a thread that can be abandoned; what it finds after that is dropped.
    is_abandoned = False

    async def collect() -> None:
        async for finding in check.function(context):
            if not is_abandoned:
                report(finding)

    try:
        await files.run(partial(anyio.run, collect), timeout_s=check.timeout_s)
    finally:
        is_abandoned = True


async def _check_remote(destination: Destination, report: Report) -> None:
    async for finding in check_remote(destination, os.environ):
        report(finding)


def _print_all(check: Callable[[Report], Awaitable[None]], *, as_json: bool) -> int:
    """Print the findings, for people as soon as they are there; returns the exit status."""
    findings: list[Finding] = []

    def report(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            sys.stdout.write("".join(f"{line}\n" for line in lines_of(finding)))
            sys.stdout.flush()

    anyio.run(check, report)
    sys.stdout.write(document_of(findings) if as_json else summary_line(findings) + "\n")
    return int(has_failed(findings))


def _parser() -> LineParser:
    parser = owner_parser(
        _PROGRAM,
        description="Check everything that a client needs to get its module, and say what to do.",
        epilog=f"example: {_PROGRAM} --client build.example.org:5001; "
        "exit status: 0 no failure, 1 some, 2 bad usage",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="compile nothing, which takes seconds"
    )
    parser.add_argument(
        "--client", type=_address, metavar="HOST:PORT", help="walk a client's way to a server instead"
    )
    release_help = "with --client: the kernel release (default: this host's)"
    parser.add_argument("--release", type=_release, metavar="R", help=release_help)
    return parser


def _address(text: str) -> tuple[str, int]:
    bracketed, _, port = text.rpartition(":")
    name = bracketed.removeprefix("[").removesuffix("]")
    if not (name and port.isascii() and port.isdecimal() and 0 < int(port) <= _MAX_PORT):
        raise ArgumentTypeError(
            f"{text!r} is not HOST:PORT, such as build.example.org:5001 or [fe80::1]:5001"
        )
    return name, int(port)


def _release(text: str) -> str:
    if not is_release_name(text):
        raise ArgumentTypeError(f"{text!r} is not a kernel release such as 6.1.0-56-amd64")
    return text
