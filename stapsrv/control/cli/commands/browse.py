"""``stap-server browse``: the compile servers on the network, and which of them the caller trusts.

It needs neither a supervisor nor SystemTap: python-zeroconf listens, and NSS's certutil lists the
certificates that the caller's client trusts.
"""

from __future__ import annotations

import json
import math
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import attrs

from stapsrv.config.addresses import parse_interfaces
from stapsrv.control.cli.commands.common import LineParser, guarded
from stapsrv.control.cli.table import aligned
from stapsrv.errors import AdvertiseError, IdentityError
from stapsrv.identity.certificate import NICKNAME, serial_pairs
from stapsrv.identity.locked_directory import explain_os_errors, read_lock
from stapsrv.identity.nss import Database
from stapsrv.identity.trust import ALL_CLIENTS, default_client_directory

if TYPE_CHECKING:
    from stapsrv.mdns.browser import FoundServer

_PROGRAM = "stap-server browse"
_TIMEOUT_S = 2.0
_LONGEST_S = 3600.0
_NONE_FOUND = 1


@guarded(_PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-server browse``; return the exit status: 0 found some, 1 none, or it failed."""
    given = _parser().parse_args(argv)
    servers = _find(given.interfaces, given.timeout)
    trusted = anyio.run(_trusted_serials, os.environ)
    if given.json:
        sys.stdout.write(as_json(servers, trusted) + "\n")
    elif servers:
        sys.stdout.write("".join(f"{line}\n" for line in table(servers, trusted)))
    else:
        sys.stderr.write(f"{_PROGRAM}: no compile server answered within {given.timeout:g} s\n")
    return 0 if servers else _NONE_FOUND


def table(servers: Sequence[FoundServer], trusted: Collection[str]) -> list[str]:
    """Return a table of servers; ``trusted`` are serial numbers of certificates."""
    rows = [["NAME", "HOST", "ADDRESS", "PORT", "RELEASE", "ARCH", "VERSION", "SERIAL", "TRUSTED"]]
    for server in servers:
        where = [server.name, server.host, next(iter(server.addresses), ""), str(server.port)]
        what = [server.release, server.arch, server.version, server.serial]
        rows.append([*where, *what, "yes" if server.serial in trusted else "no"])
    return aligned(rows)


def as_json(servers: Sequence[FoundServer], trusted: Collection[str]) -> str:
    """Return a JSON array with an object for each server: its facts, and ``trusted``."""
    shown = [{**attrs.asdict(server), "trusted": server.serial in trusted} for server in servers]
    return json.dumps(shown, indent=2)


def _parser() -> LineParser:
    parser = LineParser(
        prog=_PROGRAM,
        description="List the compile servers on the network, and whether your client trusts them.",
        epilog=f"example: {_PROGRAM} --timeout 5; exit status: 0 servers were found, 1 none was",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=_TIMEOUT_S,
        metavar="S",
        help=f"listen for so many seconds (default: {_TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--mdns-interfaces",
        dest="interfaces",
        type=_interfaces,
        default=(),
        metavar="LIST",
        help="listen on these names or addresses, with commas between (default: all that can multicast)",
    )
    return parser


def _find(interfaces: Sequence[str], timeout_s: float) -> list[FoundServer]:
    # Late: --help and a mistyped option need no zeroconf.
    from stapsrv.mdns.browser import find_servers  # noqa: PLC0415
    from stapsrv.mdns.interfaces import read_network  # noqa: PLC0415

    try:
        network = read_network().select(interfaces)
    except OSError as exc:
        raise AdvertiseError(f"the kernel does not list its network interfaces: {exc.strerror}") from exc
    if not network.links:
        raise AdvertiseError("no network interface to listen on is up and has an address")
    return find_servers(network, timeout_s)


async def _trusted_serials(environ: Mapping[str, str]) -> set[str]:
    """Return the serial numbers of the servers that the caller's client trusts, as far as readable."""
    serials: set[str] = set()
    # stap trusts what either database holds, so one that cannot be read hides only its own.
    for directory in (default_client_directory(environ), ALL_CLIENTS):
        try:
            serials |= await _serials_in(directory)
        except IdentityError as exc:
            sys.stderr.write(f"the servers that your client trusts cannot be read: {exc}\n")
    return serials


async def _serials_in(directory: Path) -> set[str]:
    database = Database(directory)
    with explain_os_errors(directory):
        if not database.exists:
            return set()
        async with read_lock(directory):
            return {serial_pairs(certificate) for certificate in await database.certificates(NICKNAME)}


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _LONGEST_S:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds, up to {_LONGEST_S:g}")
    return value


def _interfaces(text: str) -> tuple[str, ...]:
    try:
        return parse_interfaces(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"{text!r}: expected {exc}") from exc
