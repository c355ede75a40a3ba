"""``stap-server doctor``: checks everything that a client needs to get its module, and says what to do."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import anyio

from stapsrv.config.kernels import host_release, is_release_name
from stapsrv.control.cli.commands.common import LineParser, Owner, absolute_path, guarded
from stapsrv.control.client.accounts import environment_for, runnable_account
from stapsrv.doctor.context import DoctorContext, load
from stapsrv.doctor.findings import Finding, document_of, error, failure, has_failed, lines_of, summary_line
from stapsrv.doctor.kernels import check_compiling, check_releases
from stapsrv.doctor.network import check_announcements
from stapsrv.doctor.places import check_directories, check_space, check_user
from stapsrv.doctor.remote import Destination, check_remote
from stapsrv.doctor.service import (
    check_certificates,
    check_configuration,
    check_listeners,
    check_ports,
    check_supervisor,
)
from stapsrv.doctor.system import check_clock, check_containment, check_files, check_stap, check_tools
from stapsrv.errors import StapsrvError, UsageError
from stapsrv.system.blocking import BlockingCalls

_QUICK_S = 20.0
_SLOW_S = 150.0
_MAX_PORT = 65535


class Check(NamedTuple):
    """A row of the table of checks.

    Attributes:
        name: the question of a finding where the check itself fails.
        function: yields findings.
        timeout_s: for one that reads files, since a file system may hang; None for one that has deadlines
            of its own, and children to clean up.
    """

    name: str
    function: Callable[[DoctorContext], AsyncIterator[Finding]]
    timeout_s: float | None = None


# In the order of the output: the quick ones first.
CHECKS = (
    Check("stap", check_stap),
    Check("tools", check_tools),
    Check("user", check_user, _QUICK_S),
    Check("directories", check_directories, _QUICK_S),
    Check("room", check_space, _QUICK_S),
    Check("clock", check_clock, _QUICK_S),
    Check("open files", check_files, _QUICK_S),
    Check("containment", check_containment),
    Check("configured servers", check_configuration, _SLOW_S),
    Check("releases", check_releases, _QUICK_S),
    Check("certificate", check_certificates, _SLOW_S),
    Check("supervisor", check_supervisor, _QUICK_S),
    Check("ports", check_ports, _QUICK_S),
    Check("listeners", check_listeners),
    Check("announced (mDNS)", check_announcements, _SLOW_S),
    Check("compiling", check_compiling),
)


def main(argv: Sequence[str], *, program: str = "stap-server doctor") -> int:
    """Run ``stap-server doctor …``; returns the exit status: 1 after any failure, 2 for bad usage."""
    return guarded(program, lambda: _doctor(program, argv))


async def run_checks(context: DoctorContext, report: Callable[[Finding], object]) -> list[Finding]:
    """Run every check, one after the other; ``report`` is called with each finding at once."""
    findings: list[Finding] = []

    def add(finding: Finding) -> None:
        findings.append(finding)
        report(finding)

    files = BlockingCalls()
    for check in CHECKS:
        try:
            await _run_check(check, context, add, files)
        except StapsrvError as exc:
            add(error(check.name, exc))
        except TimeoutError as exc:
            add(failure(check.name, exc.strerror or str(exc), "see which file system hangs"))
        except BrokenPipeError:
            # Nobody reads the output any more; no check raises this itself.
            raise
        except OSError as exc:
            add(failure(check.name, f"{exc.filename or 'the system'}: {exc.strerror or exc}"))
    return findings


async def _run_check(
    check: Check, context: DoctorContext, add: Callable[[Finding], object], files: BlockingCalls
) -> None:
    """Run one check.

    Raises:
        TimeoutError: a file system hangs, now or since an earlier check.
        StapsrvError, OSError: the check itself failed.
    """
    if check.timeout_s is None:
        if files.abandoned:
            raise TimeoutError(errno.ETIMEDOUT, "is not checked: it might hang as an earlier check does")
        async for finding in check.function(context):
            add(finding)
        return
    # With an event loop of its own in a thread that can be abandoned; what it finds after that is dropped.
    is_abandoned = False

    async def collect() -> None:
        async for finding in check.function(context):
            if not is_abandoned:
                add(finding)

    try:
        await files.run(partial(anyio.run, collect), timeout_s=check.timeout_s)
    finally:
        is_abandoned = True


def _doctor(program: str, argv: Sequence[str]) -> int:
    given = _parser(program).parse_args(argv)
    if given.client is None and given.release is not None:
        raise UsageError("--release is for --client", remedy=f"see {program} --help")
    if given.client is not None:
        if given.config is not None or given.user is not None or not given.compile:
            raise UsageError(
                "-c, -u and --no-compile are for this host, not for --client", remedy=f"see {program} --help"
            )
        host, port = given.client
        destination = Destination(host, port, given.release or host_release())
        return _print_all(partial(_check_remote, destination, os.environ), as_json=given.json)
    owner = Owner.find(given.user, os.environ)
    if os.geteuid() == 0 and owner.name != "root":
        return _as_owner(owner.name, given)
    config_file = None if given.config is None else str(given.config)
    context = anyio.run(partial(load, config_file, os.environ, compiles=given.compile))
    return _print_all(lambda report: anyio.run(run_checks, context, report), as_json=given.json)


def _as_owner(name: str, given: argparse.Namespace) -> int:
    """Run the checks as the servers' user: root may read, write and run what a server may not."""
    account = runnable_account(name, os.environ)
    words = ["--json"] if given.json else []
    words += [] if given.compile else ["--no-compile"]
    words += [] if given.config is None else ["-c", str(given.config)]
    owner = Owner(name=name, environ=environment_for(account, os.environ))
    return owner.run("stapsrv.doctor.command", words)


def _print_all(find: Callable[[Callable[[Finding], object]], list[Finding]], *, as_json: bool) -> int:
    """Print the findings, for people as soon as they are there; returns the exit status."""
    findings = find((lambda _finding: None) if as_json else _print)
    sys.stdout.write(document_of(findings) if as_json else summary_line(findings) + "\n")
    return int(has_failed(findings))


def _check_remote(
    destination: Destination, environ: Mapping[str, str], report: Callable[[Finding], object]
) -> list[Finding]:
    async def check() -> list[Finding]:
        findings = []
        async for finding in check_remote(destination, environ):
            findings.append(finding)
            report(finding)
        return findings

    return anyio.run(check)


def _print(finding: Finding) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines_of(finding)))
    sys.stdout.flush()


def _parser(program: str) -> LineParser:
    parser = LineParser(
        prog=program,
        description="Check everything that a client needs to get its module, and say what to do.",
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
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) <= _MAX_PORT):
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
