"""``stap-compile``: compiles a script by a server, as ``stap --use-server`` does, without SystemTap."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import attrs

from stapsrv import __version__
from stapsrv.client.address import Address
from stapsrv.client.errors import ClientError, ServerNotTrusted, ServerUnavailable, UnknownServer
from stapsrv.client.exchange import ANSWER_S
from stapsrv.client.job import own_environ, pack_command, target_of
from stapsrv.client.known_servers import KnownServers, default_path
from stapsrv.client.options import StapCommand, parse_stap_options
from stapsrv.client.output import write_result
from stapsrv.client.packing import MAX_REQUEST_BYTES, STANDARD_INPUT
from stapsrv.client.response import Result, read_response
from stapsrv.client.server import Server
from stapsrv.client.terminal import can_ask, confirm, progress
from stapsrv.client.trust import Certificates, Trust
from stapsrv.compile.protocol.options import OptionValue
from stapsrv.errors import StapsrvError
from stapsrv.system.stdio import guard_stdout

PROGRAM = "stap-compile"
_FAILED = 1
# As a shell reports a program that a signal ended.
_INTERRUPTED = 130
_LONGEST_S = 86_400.0
_STAP_FAILED = "Passes: via server failed.  Try again with another '-v' option.\n"


class _Asked(Exception):
    """The help or the version is asked for, and nothing else counts; never leaves this module."""


@attrs.define
class _Given:
    """The program's own options."""

    server: str | None = None
    discover: bool = False
    trust: str | None = None
    fingerprint: list[str] = attrs.field(factory=list)
    output: str = "."
    keep: bool = False
    timeout: str | None = None
    mok: list[str] = attrs.field(factory=list)

    def take(self, name: str, value: bytes | None) -> bool:
        """Keep an option's value if it is one of these; the names of the short ones are stap's own."""
        if name in {"h", "help", "V", "version"}:
            raise _Asked(name.lower()[0])
        field = {"o": "output", "k": "keep"}.get(name, name)
        if field not in attrs.fields_dict(type(self)):
            return False
        kept = getattr(self, field)
        text = os.fsdecode(value or b"")
        setattr(
            self, field, True if isinstance(kept, bool) else [*kept, text] if isinstance(kept, list) else text
        )
        return True


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command line; return the exit status.

    Raises:
        StapsrvError: there is no response, or nowhere to put what came.
    """
    given = _Given()
    arguments = [os.fsencode(word) for word in words]
    try:
        command = parse_stap_options(arguments, own=given.take, own_options=_long_options(_parser()))
    except _Asked as asked:
        about = f"{PROGRAM} (stapsrv) {__version__}\n"
        sys.stdout.write(_parser().format_help() if str(asked) == "h" else about)
        return 0
    for option in command.not_sent:
        _complain(
            "pass 5 is not done: running a module needs SystemTap"
            if option == "-p5"
            else f"WARNING: {option} has no effect: no client sends it to a server"
        )
    response = _exchange(given, command, environ)
    result = read_response(response, last_pass=command.last_pass)
    return _report(result, Path(given.output), keep=given.keep)


def main() -> NoReturn:
    """Run ``stap-compile`` with this program's arguments and exit, with 0 or 1 as stap does."""
    with guard_stdout(PROGRAM):
        for stream in (sys.stdout, sys.stderr):
            # A name that the locale cannot write is no reason to fail.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            status = run(sys.argv[1:], os.environ)
        except StapsrvError as exc:
            _complain(str(exc))
            status = _FAILED
        except KeyboardInterrupt:
            _complain("interrupted")
            status = _INTERRUPTED
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    """Describe the program's own options; the words are read by stap's grammar."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} --server HOST:PORT [-r RELEASE] [-o DIR] [OPTION…] SCRIPT [ARGUMENT…]",
        description="Compile a SystemTap script by a compile server; no SystemTap is needed here.",
        epilog="Other options are stap's, as stap --use-server takes them: -e SCRIPT, -I DIR, -m NAME, -v, "
        "-p 1 to 4 … Exit status: 0 done, 1 failed; "
        "example: stap-compile --server build:5001 -r 6.1.0-56-amd64 x.stp",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="the server")
    parser.add_argument("--discover", action="store_true", help="look for servers by multicast DNS instead")
    parser.add_argument("-r", metavar="RELEASE", help="the kernel to compile for (default: this host's)")
    parser.add_argument("-o", metavar="DIR", help="where the module goes (default: here)")
    parser.add_argument(
        "-k",
        "--keep",
        action="store_true",
        help="write all that the server sends: sources too, to NAME.files",
    )
    parser.add_argument(
        "--fingerprint", metavar="SHA256:HEX", help="trust a server with this certificate; may be repeated"
    )
    parser.add_argument(
        "--trust", metavar="FILE|DIR", help="trust the servers of a PEM file or an NSS database directory"
    )
    parser.add_argument(
        "--mok",
        metavar="FINGERPRINT",
        help="a machine owner key of the target, or missing; may be repeated",
    )
    parser.add_argument(
        "--timeout", metavar="S", help=f"wait so many seconds for the answer (default: {ANSWER_S:g})"
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    parser.add_argument("-V", "--version", action="store_true", help="show the version")
    return parser


def _long_options(parser: argparse.ArgumentParser) -> dict[str, OptionValue]:
    return {
        name.removeprefix("--"): OptionValue.NONE if action.nargs == 0 else OptionValue.REQUIRED
        for action in parser._actions  # noqa: SLF001 - argparse has no other list of them
        for name in action.option_strings
        if name.startswith("--")
    }


def _exchange(given: _Given, command: StapCommand, environ: Mapping[str, str]) -> bytes:
    trust = _trust(given, environ)
    stdin = sys.stdin.buffer.read(MAX_REQUEST_BYTES + 1) if command.script == STANDARD_INPUT else b""
    request = pack_command(command, stdin=stdin, environ=own_environ(environ), moks=given.mok)
    timeout_s = _timeout(given.timeout)
    failure: StapsrvError | None = None
    for address in _addresses(given, command, trust):
        server = Server(address, trust=trust, timeout_s=timeout_s)
        try:
            with progress(environ) as on_stage:
                return server.send(request, on_stage=on_stage)
        except UnknownServer as exc:
            if command.script == STANDARD_INPUT or not can_ask():
                failure = exc
            elif confirm(exc):
                return _send_pinned(server, request, exc, environ)
            else:
                failure = ServerNotTrusted(f"{address} is not trusted")
        except (ServerNotTrusted, ServerUnavailable) as exc:
            failure = exc
    raise failure or ClientError("no server was found", remedy="name one with --server")


def _send_pinned(server: Server, request: bytes, shown: UnknownServer, environ: Mapping[str, str]) -> bytes:
    """Pin a server that was unknown, and send it a request if it still shows that certificate."""
    trusted = attrs.evolve(server, trust=Certificates.by_fingerprint(shown.fingerprint))
    KnownServers(default_path(environ)).pin(server.address, shown.fingerprint)
    with progress(environ) as on_stage:
        return trusted.send(request, on_stage=on_stage)


def _addresses(given: _Given, command: StapCommand, trust: Trust) -> Sequence[Address]:
    if (given.server is None) == (not given.discover):
        raise ClientError("either --server HOST:PORT or --discover is needed", remedy=f"see {PROGRAM} --help")
    if given.server is not None:
        return [Address.parse(given.server)]
    from stapsrv.client.discovery import find_servers, suitable  # noqa: PLC0415 - seldom

    release, arch = target_of(command)
    serials = trust.serials if isinstance(trust, Certificates) else frozenset()
    found = suitable(find_servers(), release=release, arch=arch, serials=serials)
    if not found:
        raise ServerUnavailable(
            f"no server for {release} {arch} answered on the network",
            remedy="name one with --server HOST:PORT",
        )
    return [address for server in found for address in server.addresses]


def _trust(given: _Given, environ: Mapping[str, str]) -> Trust:
    if given.fingerprint and given.trust is not None:
        raise ClientError("--fingerprint and --trust exclude each other")
    if given.fingerprint:
        return Certificates.by_fingerprint(*given.fingerprint)
    if given.trust is not None:
        return Certificates.read(Path(given.trust))
    return KnownServers(default_path(environ))


def _timeout(text: str | None) -> float:
    try:
        seconds = ANSWER_S if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_S:
        raise ClientError(f"--timeout {text!r} is no number of seconds up to {_LONGEST_S:g}")
    return seconds


def _report(result: Result, directory: Path, *, keep: bool) -> int:
    sys.stderr.flush()
    sys.stderr.buffer.write(result.raw_stderr)
    sys.stderr.buffer.flush()
    sys.stdout.buffer.write(result.raw_stdout)
    sys.stdout.buffer.flush()
    if result.problem is not None:
        _complain(result.problem)
    path = write_result(result, directory, keep=keep)
    if path is not None:
        sys.stdout.write(f"{path}\n")
    if result.status:
        sys.stderr.write(_STAP_FAILED)
    return result.status


def _complain(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
