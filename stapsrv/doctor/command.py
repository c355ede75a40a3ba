"""``stap-server doctor``: every question that stands between a client and its module, and the remedies."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import anyio

from stapsrv.config.kernels import host_release, is_release_name
from stapsrv.control.cli.commands.common import LineParser, Owner, absolute_path, guarded, run_as_owner
from stapsrv.control.client.accounts import environment_for, runnable_account
from stapsrv.doctor.context import DoctorContext, load
from stapsrv.doctor.findings import Finding, document_of, failure, fault, has_failed, lines_of, summary_line
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
from stapsrv.doctor.system import check_clock, check_containment, check_files
from stapsrv.doctor.tools import check_stap, check_tools
from stapsrv.errors import StapsrvError, UsageError
from stapsrv.system.blocking import BlockingCalls

Check: TypeAlias = Callable[[DoctorContext], AsyncIterator[Finding]]

_QUICK_S = 20.0
_SLOW_S = 150.0


class Question(NamedTuple):
    """A row of the table of questions.

    Attributes:
        name: for one that comes to no answer.
        check: asks it.
        timeout_s: how long it may take, since it looks at files, and a file system may hang; None for one
            that has deadlines of its own, and children to look after.
    """

    name: str
    check: Check
    timeout_s: float | None = None


QUESTIONS = (
    Question("stap", check_stap),
    Question("tools", check_tools),
    Question("user", check_user, _QUICK_S),
    Question("directories", check_directories, _QUICK_S),
    Question("room", check_space, _QUICK_S),
    Question("clock", check_clock, _QUICK_S),
    Question("open files", check_files, _QUICK_S),
    Question("containment", check_containment),
    Question("configured servers", check_configuration, _SLOW_S),
    Question("releases", check_releases, _QUICK_S),
    Question("certificate", check_certificates, _SLOW_S),
    Question("supervisor", check_supervisor, _QUICK_S),
    Question("ports", check_ports, _QUICK_S),
    Question("listeners", check_listeners),
    Question("announced (mDNS)", check_announcements, _SLOW_S),
    Question("compiling", check_compiling),
)
"""In the order of the answers: the quick first."""

_GREATEST_PORT = 65535


def main(argv: Sequence[str], *, program: str = "stap-server doctor") -> int:
    """Carry out ``stap-server doctor …``; returns 1 if there is any failure, 2 for bad usage."""
    return guarded(program, lambda: _doctor(program, argv))


async def examine(patient: DoctorContext, tell: Callable[[Finding], object]) -> list[Finding]:
    """Ask every question, one after the other.

    Args:
        patient: who is asked.
        tell: called with each answer when it is there.
    """
    findings: list[Finding] = []

    def take(finding: Finding) -> None:
        findings.append(finding)
        tell(finding)

    files = BlockingCalls()
    for question in QUESTIONS:
        try:
            await _ask(question, patient, take, files)
        except StapsrvError as exc:
            take(fault(question.name, exc))
        except TimeoutError as exc:
            take(failure(question.name, exc.strerror or str(exc), "see which file system hangs"))
        except BrokenPipeError:
            # Nobody reads the answers any more; no question meets that.
            raise
        except OSError as exc:
            take(failure(question.name, f"{exc.filename or 'the system'}: {exc.strerror or exc}"))
    return findings


async def _ask(
    question: Question, patient: DoctorContext, take: Callable[[Finding], object], files: BlockingCalls
) -> None:
    """Ask one question, and take its answers.

    Raises:
        TimeoutError: a file system hangs, now or since an earlier question.
        StapsrvError, OSError: there is no answer.
    """
    if question.timeout_s is None:
        if files.abandoned:
            raise TimeoutError(errno.ETIMEDOUT, "is not looked at: it might hang as an answer above does")
        async for finding in question.check(patient):
            take(finding)
        return
    # With an event loop of its own in a thread that can be given up; what it finds later is not taken.
    is_heard = True

    async def listen() -> None:
        async for finding in question.check(patient):
            if is_heard:
                take(finding)

    try:
        await files.run(partial(anyio.run, listen), timeout_s=question.timeout_s)
    finally:
        is_heard = False


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
        return _tell(lambda tell: _visit(destination, os.environ, tell), as_json=given.json)
    owner = Owner.find(given.user, os.environ)
    if os.geteuid() == 0 and owner.name != "root":
        return _as_owner(owner.name, given)
    config_file = None if given.config is None else str(given.config)
    patient = anyio.run(partial(load, config_file, os.environ, compiles=given.compile))
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
        async for finding in check_remote(destination, environ):
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
