"""``stap-server bench``: how a server does under a bounded load, so that workers and cache can be sized."""

from __future__ import annotations

import argparse
import ipaddress
import math
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from stapsrv.bench.load import MAX_CLIENTS, MAX_REQUESTS, LoadResult, measure
from stapsrv.client.address import Address
from stapsrv.client.job import Job
from stapsrv.client.server import Server
from stapsrv.client.trust import Certificates, Trust
from stapsrv.control.cli.commands.common import LineParser, guarded
from stapsrv.control.cli.table import aligned
from stapsrv.errors import UsageError

_PROGRAM = "stap-server bench"
_SCRIPT = 'probe begin { println("bench") exit() }'
_FAILED = 1
_PERCENTILES = (50, 90, 99, 100)
_PLOT_SIZE = (72, 16)
_LONGEST_S = 3600.0


@guarded(_PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-server bench``; return the exit status: 0 all requests got their module, 1 some did not."""
    given = _parser().parse_args(argv)
    address = Address.parse(given.server)
    if not given.yes and not is_on_this_host(address):
        raise UsageError(
            f"{address} is not on this host: a load may keep others from their modules",
            remedy="say --yes if its operator knows",
        )
    server = Server(address, trust=_trust(given), timeout_s=given.seconds)
    job = Job(script=_script(given.script), release=given.release)
    rows: list[tuple[str, LoadResult]] = []
    for kind in ("new", "repeated"):
        if kind == "repeated":
            # What the server knows from then on.
            measure(server, job, clients=1, requests=1, is_new=False, deadline_s=given.seconds)
        for clients in given.clients:
            sys.stderr.write(f"{_PROGRAM}: {given.requests} {kind} scripts from {clients} at a time\n")
            result = measure(
                server,
                job,
                clients=clients,
                requests=given.requests,
                is_new=kind == "new",
                deadline_s=given.seconds,
            )
            rows.append((kind, result))
    sys.stdout.write("".join(f"{line}\n" for line in table(rows)))
    if given.plot:
        sys.stdout.write(plot(rows))
    failures = [result.failure for _, result in rows if result.failure is not None]
    if failures:
        sys.stderr.write(f"{_PROGRAM}: {failures[0]}\n")
    return _FAILED if failures else 0


def table(rows: Sequence[tuple[str, LoadResult]]) -> list[str]:
    """Return a table of loads: the kind of script, how many clients, and how they fared; times in seconds."""
    lines = [["SCRIPTS", "CLIENTS", "ANSWERED", "FAILED", "PER S", *(f"P{each}" for each in _PERCENTILES)]]
    for kind, result in rows:
        counts = [
            str(result.clients),
            str(len(result.seconds)),
            str(result.failed),
            f"{result.per_second:.2f}",
        ]
        times = [result.percentile(each) for each in _PERCENTILES]
        lines.append([kind, *counts, *("" if math.isnan(each) else f"{each:.3f}" for each in times)])
    return aligned(lines, right=range(1, len(lines[0])))


def plot(rows: Sequence[tuple[str, LoadResult]]) -> str:
    """Return a plot of throughput over the number of clients; a UsageError if plotext is not installed."""
    try:
        import plotext  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise UsageError("--plot needs plotext", remedy="install it: pip install 'stapsrv[bench]'") from exc
    plotext.clear_figure()
    plotext.plot_size(*_PLOT_SIZE)
    plotext.title("modules per second, by clients")
    for kind in dict.fromkeys(kind for kind, _ in rows):
        of_kind = [result for each, result in rows if each == kind]
        plotext.plot(
            [result.clients for result in of_kind],
            [result.per_second for result in of_kind],
            label=kind,
            marker="dot",
        )
    return f"{plotext.uncolorize(plotext.build())}\n"


def is_on_this_host(address: Address) -> bool:
    """Whether all addresses of a host are of its loopback interface."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise UsageError(f"{address.host} has no address ({exc.strerror})") from exc
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def _trust(given: argparse.Namespace) -> Trust | None:
    if given.fingerprint is not None:
        return Certificates.by_fingerprint(given.fingerprint)
    return None if given.trust is None else Certificates.read(Path(given.trust))


def _script(path: Path | None) -> str:
    if path is None:
        return _SCRIPT
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        raise UsageError(f"{path} cannot be read ({reason})") from exc


def _parser() -> LineParser:
    parser = LineParser(
        prog=_PROGRAM,
        description="Measure a server under a bounded load: new scripts, then a repeated one.",
        epilog=f"example: {_PROGRAM} --server localhost:5001 --clients 1,2,4; the times are seconds",
    )
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="the server, on this host")
    parser.add_argument("--yes", action="store_true", help="load a server on another host, too")
    parser.add_argument("-r", dest="release", metavar="RELEASE", help="the kernel (default: this host's)")
    parser.add_argument("--fingerprint", metavar="SHA256:HEX", help="trust a server with this certificate")
    parser.add_argument(
        "--trust", metavar="FILE|DIR", help="trust the servers of a PEM file or an NSS database directory"
    )
    parser.add_argument("--script", type=Path, metavar="FILE", help="compile this one (default: a tiny one)")
    parser.add_argument(
        "--clients",
        type=_numbers,
        default=(1, 2, 4),
        metavar="LIST",
        help="so many at a time (default: 1,2,4)",
    )
    parser.add_argument(
        "--requests", type=_number, default=20, metavar="N", help="for each row of the table (default: 20)"
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=120.0, metavar="S", help="at most, for each row (default: 120)"
    )
    parser.add_argument("--plot", action="store_true", help="draw the throughput, too; needs stapsrv[bench]")
    return parser


def _number(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= MAX_REQUESTS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MAX_REQUESTS}")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and 0 < int(word) <= MAX_CLIENTS for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 1 to {MAX_CLIENTS}")
    return tuple(map(int, words))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, up to {_LONGEST_S:g}")
    return value
