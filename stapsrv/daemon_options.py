"""The command line of ``stap-serverd``: words in, values out."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import attrs

from stapsrv import __version__
from stapsrv.config.log_format import LogFormat, parse_log_format
from stapsrv.config.mdns import MdnsSettings, parse_host, parse_interfaces
from stapsrv.config.metrics_address import MetricsAddress, parse_metrics_address
from stapsrv.config.settings import DEFAULT_MAX_COMPRESSED_BYTES, DEFAULT_MAX_REQUEST_BYTES, ServerSettings
from stapsrv.config.tunables import NOTHING_SET, TUNABLES, Scope, Tunable, Tuning, with_tuning
from stapsrv.errors import UsageError

PROGRAM = "stap-serverd"

_T = TypeVar("_T")

_MAX_PORT = 65535
_WITH_VALUE = re.compile(
    r"-[aBDIrRc]|--(port|log|log-format|ssl|max-threads|max-request-size|max-compressed-request|metrics|backend"
    r"|password-file|password-descriptor"
    r"|mdns-interfaces|mdns-host)"
    rf"|{'|'.join(row.option for row in TUNABLES)}"
)
_EPILOG = f"""\
With an option that describes a server, that one server is hosted. Without any, the servers of the
configuration directory are, or one for this host's kernel where none is configured; they are commanded
by stap-server.

examples:
  {PROGRAM} -r 6.1.0-56-amd64 --port 5001 --log /var/log/stap-server/log
  {PROGRAM} -c /etc/stap-server/global.conf
"""
_OF_CONFIGURED = {"-c": "config_file", "--on-demand": "on_demand", "--no-resume": "resume"}
"""Options that mean nothing for a server that the command line describes, and what they set."""


@attrs.frozen(kw_only=True)
class DaemonOptions:
    """What the command line asks for.

    Attributes:
        server: the one server to host, or None to host the configured ones.
        log: the log file, or None for the configured one, or standard error.
        log_format: how log lines look, or None for as configured.
        config_file: the last ``-c``, a global configuration file.
        resume: start again what a supervisor that died had on record.
        on_demand: host nothing at first, and end when the last server has stopped.
        metrics: where metrics and health are to be had, or None for as configured.
        use_password: the certificate databases have a password.
        password_file: where it is to be read.
        password_descriptor: likewise, inherited.
        backend: the event loop, ``asyncio``, ``uvloop`` or ``trio``; None: uvloop where it is installed, else
            asyncio.
        mdns_enabled: of :class:`stapsrv.config.mdns.MdnsSettings`, like the next two.
        mdns_interfaces: likewise.
        mdns_host: likewise.
        tuning: what is set of the table of tunables for all servers together.
    """

    server: ServerSettings | None = None
    log: Path | None = None
    log_format: LogFormat | None = None
    config_file: Path | None = None
    resume: bool = True
    on_demand: bool = False
    metrics: MetricsAddress | None = None
    use_password: bool = False
    password_file: Path | None = None
    password_descriptor: int | None = None
    backend: str | None = None
    mdns_enabled: bool | None = None
    mdns_interfaces: tuple[str, ...] | None = None
    mdns_host: str | None = None
    tuning: Tuning = NOTHING_SET

    @property
    def mdns(self) -> MdnsSettings:
        """How servers are to be advertised, as far as the command line says it."""
        return MdnsSettings(self.mdns_enabled, self.mdns_interfaces, self.mdns_host)


def parse_arguments(argv: Sequence[str], described: Mapping[str, object] | None = None) -> DaemonOptions:
    """Read the command line; values may be attached or separate, as getopt has them.

    Args:
        argv: its words.
        described: what holds for a server that the words describe, where they do not say; by attribute of
            its settings.

    Raises:
        UsageError: it cannot be understood; the text names the option.
    """
    given = vars(_parser().parse_args(_attach_values(argv)))
    named = {name: value for name, value in given.items() if value is not None}
    for name in ("releases", "build", "define", "include"):
        if name in named:
            named[name] = tuple(named[name])
    for row in TUNABLES:
        if row.array and row.attribute in named:
            named[row.attribute] = tuple(named[row.attribute])
    own = [row.attribute for row in TUNABLES if row.scope is Scope.SUPERVISOR]
    tuning = Tuning({name: named.pop(name) for name in own if name in named})
    daemon = {
        field.name: named.pop(field.name) for field in attrs.fields(DaemonOptions) if field.name in named
    }
    daemon["tuning"] = tuning
    if not named:
        return DaemonOptions(**daemon)
    for option, name in _OF_CONFIGURED.items():
        if name in daemon:
            raise UsageError(
                f"a server is described, and {option} is for the configured ones",
                remedy="leave one of the two out",
            )
    settings = with_tuning({**(described or {}), **named})
    settings |= {name: daemon[name] for name in ("log", "log_format") if name in daemon}
    return DaemonOptions(server=ServerSettings(**settings), **daemon)


class _Parser(argparse.ArgumentParser):
    """Argparse, but a fault is one line and an error of our own."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"see {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM,
        description="Serve SystemTap compile requests (stap --use-server) in the foreground.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _add_server_options(parser.add_argument_group("a server").add_argument)
    limits = parser.add_argument_group("limits of a server")
    own = parser.add_argument_group("limits of all servers together")
    for row in TUNABLES:
        _add_tunable((limits if row.scope is Scope.SERVER else own).add_argument, row)
    add = parser.add_argument_group("the daemon").add_argument
    add("--log", type=_absolute_path, metavar="FILE", help="log file (default: LOG_FILE, or standard error)")
    add(
        "--log-format",
        type=_expecting(parse_log_format),
        metavar="FORMAT",
        help="how log lines look: classic, json, or journal (no file, but the systemd journal)",
    )
    add(
        "-c",
        dest="config_file",
        type=_absolute_path,
        metavar="FILE",
        help="global configuration file, read after the default one; the last -c counts",
    )
    add(
        "--metrics",
        type=_expecting(parse_metrics_address),
        metavar="ADDRESS",
        help="metrics and health over HTTP: PORT (on 127.0.0.1), ADDRESS:PORT, or unix:PATH (default: off)",
    )
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
        "--mdns-interfaces",
        type=_expecting(parse_interfaces),
        metavar="LIST",
        help="advertise on these names or addresses, with commas between (default: all that can multicast)",
    )
    add(
        "--mdns-host",
        type=_expecting(parse_host),
        metavar="NAME",
        help="advertise under this host name (default: this host's own)",
    )
    add(
        "-P",
        dest="use_password",
        action="store_true",
        help="certificate databases have a password: a credential, or asked for on the terminal",
    )
    add(
        "--password-file",
        type=_absolute_path,
        metavar="FILE",
        help="read that password from a file of mode 0600",
    )
    # How stap-server starts a supervisor for itself.
    add(
        "--password-descriptor",
        type=_number("a descriptor", 0),
        help=argparse.SUPPRESS,
    )
    add("--on-demand", action="store_true", help=argparse.SUPPRESS)
    add(
        "--backend",
        choices=("asyncio", "uvloop", "trio"),
        help="event loop (default: uvloop where it is installed, else asyncio)",
    )
    add("--version", action="version", version=f"{PROGRAM} (stapsrv) {__version__}")
    return parser


def _add_server_options(add: Callable[..., argparse.Action]) -> None:
    add("-a", dest="arch", metavar="ARCH", help="target architecture (default: this host's)")
    for option, name, metavar, read, what in (
        ("-r", "releases", "RELEASE", str, "a kernel release, or an absolute build tree"),
        ("-B", "build", "OPTION", str, "an option for the make that builds modules"),
        ("-D", "define", "NAME=VALUE", str, "a definition for the C preprocessor"),
        ("-I", "include", "DIR", _absolute, "a further directory with tapsets"),
    ):
        text = f"{what}; may be repeated"
        add(option, dest=name, metavar=metavar, type=read, action="append", help=text)
    add("-R", dest="runtime", metavar="DIR", type=_absolute, help="the SystemTap runtime to use")
    add("-k", dest="keep_temporary", action="store_true", help="keep temporary directories")
    port = _number("a port", 0, _MAX_PORT)
    add("--port", type=port, metavar="N", help="TCP port (default: 0, any free one)")
    add(
        "--ssl",
        type=_absolute_path,
        metavar="DIR",
        help="certificate database (default: ~/.systemtap/ssl/server)",
    )
    add(
        "--max-threads",
        type=_number("a number of threads", 0),
        metavar="N",
        help="requests compiled at the same time; 0: one at a time (default: the number of cores)",
    )
    add(
        "--max-request-size",
        dest="max_request_bytes",
        type=_number("a size in bytes", 1),
        metavar="BYTES",
        help=f"largest request, uncompressed (default: {DEFAULT_MAX_REQUEST_BYTES})",
    )
    add(
        "--max-compressed-request",
        dest="max_compressed_bytes",
        type=_number("a size in bytes", 1),
        metavar="BYTES",
        help=f"largest request, as sent (default: {DEFAULT_MAX_COMPRESSED_BYTES})",
    )


def _add_tunable(add: Callable[..., argparse.Action], row: Tunable) -> None:
    default = f" (default: {row.default_text})" if row.default_text else ""
    repeated = "; may be repeated" if row.array else ""
    add(
        row.option,
        dest=row.attribute,
        metavar=row.kind.metavar,
        type=_expecting(row.kind.parse),
        action="append" if row.array else "store",
        help=f"{row.help}{repeated}{default}".replace("%", "%%"),
    )


def _absolute_path(text: str) -> Path:
    """Read a path that holds wherever a compile runs."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text).absolute()


def _absolute(text: str) -> str:
    return str(_absolute_path(text))


def _number(what: str, least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a reader of decimal numbers within bounds, for argparse."""
    bounds = f"{least} or more" if most is None else f"{least} to {most}"

    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() else -1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} ({bounds})")
        return value

    return read


def _expecting(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Return ``parse``, which says what it expected, for argparse."""

    def read(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {exc}") from exc

    return read


def _attach_values(argv: Sequence[str]) -> list[str]:
    """Join each option with its separate value, which getopt takes even when it begins with a dash."""
    joined: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if _WITH_VALUE.fullmatch(argument) is None:
            joined.append(argument)
            continue
        value = next(rest, None)
        glue = "=" if argument.startswith("--") else ""
        joined += [argument] if value is None else [f"{argument}{glue}{value}"]
    return joined
