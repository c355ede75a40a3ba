"""The command line of ``stap-farm``: words in, values out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stapsrv import __version__
from stapsrv.config.addresses import FarmAddress, parse_farm_address, parse_metrics_address
from stapsrv.config.configured import EACH_RELEASE
from stapsrv.config.kinds import Kind, count
from stapsrv.config.option_parser import Append, Parser, add_typed, help_of
from stapsrv.config.setting import Group, Setting
from stapsrv.config.table import Description, Limits, SharedLimits
from stapsrv.config.tuning import Tuning
from stapsrv.control.cli.commands.common import LineParser
from stapsrv.errors import UsageError

PROGRAM = "stap-farm"

_FILE = Kind("FILE", Path, is_path=True)
_ADDRESS = Kind("ADDRESS", parse_farm_address)


class _Member(Group):
    """The options that a scheduler and a node have in common."""

    ca = Setting[Any]("CA", _FILE, "certificate of the farm's authority, ca.pem", default_text="FARM_CA")
    cert = Setting[Any]("CERT", _FILE, "certificate of this host in the farm", default_text="FARM_CERT")
    key = Setting[Any]("KEY", _FILE, "its private key, for its owner's eyes alone", default_text="FARM_KEY")


LISTEN = FarmAddress(is_encrypted=True, host="0.0.0.0", port=8786)  # noqa: S104 - all of this host's


class _Scheduler(Group):
    listen = Setting[Any](
        "LISTEN",
        _ADDRESS,
        "where to listen: tls://ADDRESS:PORT, or tcp:// without TLS at a loopback address",
        default=LISTEN,
    )
    dashboard = Setting[Any](
        "DASHBOARD",
        Kind("ADDRESS", parse_metrics_address),
        "where to serve Dask's own page of all jobs, without TLS: PORT (on 127.0.0.1) or ADDRESS:PORT",
        default_text="nowhere",
    )


class _Worker(Group):
    scheduler = Setting[Any](
        "SCHEDULER",
        _ADDRESS,
        "the farm's scheduler: tls://HOST:PORT, or tcp:// without TLS at a loopback address",
        default_text="FARM",
    )
    name = Setting[Any](
        "NAME", Kind("NAME"), "name in the farm, unique there", default_text="made of the host's"
    )
    slots = Setting[Any](
        "SLOTS",
        count("a number of compiles"),
        "compiles at the same time",
        default_text="the number of cores",
    )
    port = Setting[Any](
        "PORT",
        count("a port number", most=65_535),
        "where the scheduler connects to the node",
        default_text="a port that the kernel picks",
    )


_OFFERED = (Description.releases, Description.include, Description.runtime)
# Those of compiles; what bounds clients and answers is of the servers.
_LIMITS = (
    *(Limits.compile_s, Limits.output_bytes, Limits.answer_bytes, Limits.temp_bytes),
    *(SharedLimits.total_temp_bytes, SharedLimits.temp_in_memory, Limits.prepared, Limits.drain_s),
    *(
        Limits.kill_grace_s,
        Limits.cpu_s,
        Limits.memory_bytes,
        Limits.file_bytes,
        Limits.processes,
        Limits.cores,
    ),
    *(Limits.nice, SharedLimits.sandbox, Limits.sandbox_read, Limits.sandbox_write),
)
_ROWS = {
    "scheduler": {"the scheduler": (*_Scheduler.rows, *_Member.rows)},
    "worker": {"the node": (*_Worker.rows, *_Member.rows), "what it offers": _OFFERED, "its limits": _LIMITS},
}
_EPILOG = f"""\
examples:
  {PROGRAM} ca init && {PROGRAM} ca issue scheduler && {PROGRAM} ca issue node1
  {PROGRAM} scheduler --ca ca.pem --cert scheduler.pem --key scheduler.key
  {PROGRAM} worker --scheduler tls://build.example.org:8786 --ca ca.pem --cert node1.pem --key node1.key
"""


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Read a command line; return its words, and what options set, by attribute.

    Raises:
        UsageError: it cannot be understood.
    """
    given = _parser().parse_args(argv)
    rows = {row.option: row for group in _ROWS.get(given.command, {}).values() for row in group}
    values: dict[str, Any] = {}
    for option, text in getattr(given, "typed", ()):
        add_typed(values, rows[option], text)
    return given, values


def with_farm(values: Mapping[str, Any], base: Tuning) -> dict[str, Any]:
    """Return a member's options, and for what they do not say the host's files and environment (FARM…).

    Raises:
        UsageError: some of the authority, the certificate and its key are missing.
    """
    named = base.get("farm")
    filled = {"scheduler": None if named is None else parse_farm_address(named), **values}
    files = [row.attribute for row in _Member.rows]
    address = filled["listen" if "listen" in filled else "scheduler"]
    if not any(name in values for name in files) and (address is None or address.is_encrypted):
        filled |= {name: base.get(f"farm_{name}") for name in files}
    filled = {name: value for name, value in filled.items() if value is not None}
    missing = [f"--{name}" for name in files if name not in filled]
    if missing and len(missing) < len(files):
        raise UsageError(
            "the farm's authority, a certificate and its key belong together",
            where=" ".join(missing),
            remedy="name all three, or none for tcp://",
        )
    return filled


def tuning_of(values: Mapping[str, Any], base: Tuning) -> Tuning:
    """Return a node's limits: those of its options over those of its host's files and environment."""
    mine = {row.attribute for row in _LIMITS}
    return Tuning({name: value for name, value in values.items() if name in mine}).over(
        {name: value for name, value in base.items() if name in mine}
    )


def releases_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the releases that a node is to offer; empty for all that are installed."""
    named: tuple[str, ...] = values.get(Description.releases.attribute, ())
    return () if named == (EACH_RELEASE,) else tuple(dict.fromkeys(named))


def _parser() -> Parser:
    parser = LineParser(
        prog=PROGRAM,
        description="Compile for servers on further hosts: a farm's nodes, its scheduler, its certificates.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} (stapsrv) {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=LineParser
    )
    for name, text, example in (
        ("scheduler", "give the farm's jobs to its nodes", "--ca ca.pem --cert here.pem --key here.key"),
        (
            "worker",
            "compile on this host, for the releases whose headers it has",
            "--scheduler tls://build.example.org:8786 --ca ca.pem --cert here.pem --key here.key",
        ),
    ):
        below = _add(commands, name, text, example=example)
        for title, rows in _ROWS[name].items():
            group = below.add_argument_group(title)
            for row in rows:
                # The releases of a server are the running one by default.
                shown = help_of(row) if row is not Description.releases else _RELEASES
                group.add_argument(row.option, metavar=row.kind.metavar, action=Append, help=shown)
    _add_authority(_add(commands, "ca", "make the certificates of a farm's members", example="init"))
    return parser


_RELEASES = "a kernel release, or an absolute build tree; may be repeated (default: all that are installed)"


def _add_authority(parser: LineParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=LineParser)
    where = "directory of the authority (default: ~/.systemtap/farm)"
    init = _add(verbs, "init", "make the farm's certificate authority, valid for ten years")
    init.add_argument("directory", nargs="?", metavar="DIR", help=where)
    issue = _add(verbs, "issue", "issue a certificate for a host, valid for two years", example="node1")
    issue.add_argument(
        "name", metavar="NAME", help="name of the host, and of the files NAME.pem and NAME.key"
    )
    issue.add_argument("directory", nargs="?", metavar="DIR", help=where)
    issue.add_argument(
        "--host",
        dest="hosts",
        metavar="NAME",
        action="append",
        default=[],
        help="a further host name or IP address in the certificate; may be repeated",
    )


def _add(commands: Any, name: str, text: str, *, example: str = "") -> LineParser:  # noqa: ANN401 - argparse's
    added: LineParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        argument_default=argparse.SUPPRESS,
    )
    added.epilog = f"example: {added.prog} {example}".rstrip()
    return added
