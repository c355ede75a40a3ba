"""The command line of ``stap-serverd``: words in, values out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from stapsrv import __version__
from stapsrv.config.compilation import Compilation
from stapsrv.config.files import retired_warning
from stapsrv.config.kinds import Kind, choice, count
from stapsrv.config.option_parser import Append, OptionParser, add_typed, help_of
from stapsrv.config.setting import Group, Setting
from stapsrv.config.settings import ServerSettings
from stapsrv.config.table import (
    RETIRED,
    Description,
    Limits,
    NetworkAccess,
    Service,
    SharedLimits,
)
from stapsrv.config.tuning import with_tuning
from stapsrv.errors import UsageError

PROGRAM = "stap-serverd"

_FILE = Kind("FILE", Path, is_path=True)
_EPILOG = f"""\
With an option that describes a server, that one server is hosted. Without any, the servers of the
configuration directory are, or one for this host's kernel where none is configured; they are commanded
by stap-server.

examples:
  {PROGRAM} -r 6.1.0-56-amd64 --port 5001 --log /var/log/stap-server/log
  {PROGRAM} -c /etc/stap-server/global.conf
"""
# They mean nothing for a server that the command line describes.
_FOR_CONFIGURED = {"-c": "config_file", "--on-demand": "on_demand", "--no-resume": "resume"}
# The daemon's own log, and that of the server that it hosts: one option for both.
_FOR_BOTH = ("log", "log_format")


class _Daemon(Group):
    """The settings of the command line alone, as rows like those of the files."""

    log = Setting[Any]("LOG", _FILE, "log file", default_text="LOG_FILE, or standard error")
    config_file = Setting[Any](
        "CONFIG",
        _FILE,
        "global configuration file, read after the default one; the last -c counts",
        option="-c",
    )
    password_file = Setting[Any]("PASSWORD_FILE", _FILE, "read that password from a file of mode 0600")
    # How stap-server starts a supervisor for itself; its help does not show it.
    password_descriptor = Setting[Any]("PASSWORD_DESCRIPTOR", count("a descriptor", least=0), "")
    backend = Setting[Any](
        "BACKEND",
        choice("asyncio", "uvloop", "trio"),
        "event loop",
        default_text="uvloop where it is installed, else asyncio",
    )


_GROUPS = {
    "a server": [
        row for row in Description.rows if row.by_process and row.attribute not in (*_FOR_BOTH, "nickname")
    ],
    "limits of a server": [*NetworkAccess.rows, *Limits.rows],
    "where a server compiles": [*Compilation.rows],
    "limits of all servers together": [*SharedLimits.rows],
    "the daemon": [
        *_Daemon.rows,
        *(Service.log_format, Service.metrics, Service.web, Service.web_token_file),
        *(Service.mdns_interfaces, Service.mdns_host),
    ],
}
_ROWS: dict[str, Setting[Any]] = {row.option: row for rows in _GROUPS.values() for row in rows}


@attrs.frozen(kw_only=True)
class DaemonOptions:
    """The parsed command line; if it names no server, the configured ones are hosted."""

    server: ServerSettings | None = None
    log: Path | None = None
    config_file: Path | None = None
    resume: bool = True  # start again what a supervisor that died had on record
    on_demand: bool = False  # host nothing at first, and end when the last server has stopped
    use_password: bool = False
    password_file: Path | None = None
    password_descriptor: int | None = None
    backend: str | None = None
    service: Mapping[str, Any] = {}  # by attribute, what goes before the global file
    warnings: tuple[str, ...] = ()


def parse_arguments(argv: Sequence[str], described: Mapping[str, object] | None = None) -> DaemonOptions:
    """Read the command line; ``described`` are the environment's settings, for a server that it describes."""
    values = vars(_parser().read(argv))
    typed = values.pop("typed")
    for option, text in typed:
        if option in _ROWS:
            add_typed(values, _ROWS[option], text)
    rows = (*Service.rows, *SharedLimits.rows)
    service = {row.attribute: values.pop(row.attribute) for row in rows if row.attribute in values}
    daemon = {
        field.name: values.pop(field.name) for field in attrs.fields(DaemonOptions) if field.name in values
    }
    daemon["service"] = service
    daemon["warnings"] = tuple(retired_warning(option) for option, _ in typed if option not in _ROWS)
    if not values:
        return DaemonOptions(**daemon)
    for option, name in _FOR_CONFIGURED.items():
        if name in daemon:
            problem = f"a server is described, and {option} is for the configured ones"
            raise UsageError(problem, remedy="leave one of the two out")
    settings = with_tuning({**(described or {}), **values})
    settings |= {name: value for name, value in (daemon | service).items() if name in _FOR_BOTH}
    return DaemonOptions(server=ServerSettings(**settings), **daemon)


def _parser() -> OptionParser:
    parser = OptionParser(
        prog=PROGRAM,
        description="Serve SystemTap compile requests (stap --use-server) in the foreground.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    for title, rows in _GROUPS.items():
        for row in rows:
            text = help_of(row) if row.help else argparse.SUPPRESS
            groups[title].add_argument(row.option, metavar=row.kind.metavar, action=Append, help=text)
    groups["a server"].add_argument(
        "-k", dest="keep_temporary", action="store_true", help="keep temporary directories"
    )
    add = groups["the daemon"].add_argument
    add(
        "--no-resume",
        dest="resume",
        action="store_false",
        help="do not start again the servers that a supervisor which died was hosting",
    )
    add(
        "--no-mdns", dest="mdns_enabled", action="store_false", help="do not advertise servers on the network"
    )
    add(
        "-P",
        dest="use_password",
        action="store_true",
        help="certificate databases have a password: a credential, or asked for on the terminal",
    )
    add("--on-demand", action="store_true", help=argparse.SUPPRESS)
    for name in RETIRED:
        add(f"--{name.lower()}", action=Append, help=argparse.SUPPRESS)
    add("--version", action="version", version=f"{PROGRAM} (stapsrv) {__version__}")
    return parser
