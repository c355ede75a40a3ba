"""``stap-server check``: finds out whether the configured or specified servers could be started.

It only reads: nothing is started, made or locked. Each problem names its file and line, or option.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from stapsrv.config.addresses import socket_address
from stapsrv.config.files import ConfigFaults
from stapsrv.config.global_settings import can_write
from stapsrv.config.kernels import resolve_release
from stapsrv.config.kinds import LogFormat
from stapsrv.config.settings import ServerSettings
from stapsrv.config.table import SERVER_SETTINGS
from stapsrv.control.cli.commands.lifecycle import line_of
from stapsrv.control.cli.console import Console, encode_document
from stapsrv.control.cli.inventory import Inventory
from stapsrv.control.cli.invocation import Invocation, OutputForm
from stapsrv.control.cli.plan import Operation, Target, make_plan
from stapsrv.control.client.accounts import Account, runnable_account
from stapsrv.errors import ConfigError
from stapsrv.observe.sinks import JOURNAL, stream_descriptor
from stapsrv.text import counted

_FAILED = 1
# The option for each variable of a file.
_OPTIONS = {row.variable: row.option or "log format" for row in SERVER_SETTINGS}
# The first port for plain users (ip(7)).
_FIRST_PORT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def run_check(invocation: Invocation, console: Console, environ: Mapping[str, str]) -> int:
    """Print every problem and warning, one a line; return 1 if there is a problem, else 0.

    ``--json`` prints an object: ``problems``, an array of ``where`` (a file and line, an option, or null),
    ``problem`` and ``remedy`` (or null); ``warnings``, an array of lines about what has no effect;
    ``servers``, the number of servers checked; ``exit_status``.
    """
    servers, problems, warnings = find_problems(invocation, environ)
    status = _FAILED if problems else 0
    if invocation.output is OutputForm.JSON:
        members = ("where", "problem", "remedy")
        found = [{name: getattr(problem, name) for name in members} for problem in problems]
        console.write(
            encode_document(
                {"problems": found, "warnings": warnings, "servers": servers, "exit_status": status}
            )
        )
        return status
    for line in (*problems, *(f"warning: {warning}" for warning in warnings)):
        console.say(str(line))
    if not problems:
        console.say(f"{counted(servers, 'server')}, no problem")
    return status


def find_problems(
    invocation: Invocation, environ: Mapping[str, str]
) -> tuple[int, list[ConfigError], tuple[str, ...]]:
    """Return the number of servers, their problems in the files' order, and warnings that hinder none."""
    try:
        inventory = Inventory(invocation, environ)
        configured = inventory.configured
    except ConfigError as exc:
        # A wrong global file ends the check: what follows from it is unknown.
        return 0, _single_faults(exc), ()
    files = () if invocation.specifications else inventory.files
    warnings = (*inventory.settings.warnings, *(warning for file in files for warning in file.warnings))
    problems = [problem for file in files if file.fault for problem in _single_faults(file.fault)]
    if files and not configured:
        return 0, problems, warnings
    plan = make_plan(invocation, running=inventory.found, configured=configured, host=inventory.host)
    checker = _Checker(inventory)
    problems += map(ConfigError, plan.warnings)
    for target in plan.targets:
        problems += checker.check(target)
    return len(plan.targets), problems, warnings


class _Checker:
    """Checks one server after the other, and remembers the ports of the earlier ones."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._ports: dict[int, list[tuple[frozenset[str], str]]] = {}

    def check(self, target: Target) -> Iterator[ConfigError]:
        """Yield the problems of a server."""
        if target.problem is not None:
            place = None if target.where is None else line_of(target.where, "NICKNAME")
            yield ConfigError(target.problem, where=place)
        if target.operation is not Operation.CHECK or target.settings is None:
            return
        settings = target.settings
        account = None
        user = settings.user or self._inventory.default_user
        try:
            account = runnable_account(user, self._inventory.environ, where=_place(target, "USER", user))
        except ConfigError as exc:
            yield exc
        # All problems of a server at once: nobody wants to run check once for each.
        yield from self._check_releases(target, settings)
        yield from self._check_port(target, settings)
        for address in settings.access.listen:
            yield from _check_listen(target, address)
        for directory in settings.include:
            yield from _check_directory(target, "INCLUDE", directory)
        if settings.runtime is not None:
            yield from _check_directory(target, "RUNTIME", settings.runtime)
        if account is not None:
            yield from self._check_log(target, settings, account)
            yield from _check_database(target, settings, account)

    def _check_releases(self, target: Target, settings: ServerSettings) -> Iterator[ConfigError]:
        for release in settings.releases if settings.compiles_here else ():
            try:
                resolve_release(release, arch=settings.arch or self._inventory.host.defaults.arch)
            except ConfigError as exc:
                where = _place(target, "RELEASE", release)
                yield ConfigError(exc.problem, where=where, remedy=exc.remedy)

    def _check_port(self, target: Target, settings: ServerSettings) -> Iterator[ConfigError]:
        port = settings.port
        if port == 0:
            return
        where = _place(target, "PORT", str(port))
        if port < _first_port():
            yield ConfigError(
                f"port {port} is for root alone, and no server runs as root",
                where=where,
                remedy=f"give one from {_first_port()} to 65535",
            )
        listen = frozenset(settings.access.listen)
        others = self._ports.setdefault(port, [])
        # An unspecified address stands for many; whether two such meet is left to the kernel.
        meeting = [place for other, place in others if not (other and listen and other.isdisjoint(listen))]
        others.append((listen, where))
        # One is enough: each further one would be reported against the same line.
        for other in meeting[:1]:
            yield ConfigError(
                f"port {port} is that of another server, too: {other}",
                where=where,
                remedy="give one of the two another port",
            )

    def _check_log(self, target: Target, settings: ServerSettings, account: Account) -> Iterator[ConfigError]:
        log = settings.log or self._inventory.settings.log_file
        if (settings.log_format or self._inventory.settings.log_format) is LogFormat.JOURNAL:
            if not JOURNAL.is_socket():
                yield ConfigError(
                    f"the systemd journal does not listen at {JOURNAL}",
                    where=_place(target, "LOG_FORMAT", LogFormat.JOURNAL),
                    remedy="use classic or json where systemd does not run",
                )
            return
        if stream_descriptor(log) is not None:
            return
        # The default log is made where it is missing, by root for others or by the user himself.
        creates_it = log == self._inventory.settings.log_file and (os.geteuid() == 0 or can_write(log))
        if creates_it and not log.exists():
            return
        if not _may_write(account, log if log.exists() else log.parent):
            yield ConfigError(
                f"log file {log} cannot be written by user {account.name}",
                where=_place(target, "LOG", str(log)),
                remedy="make its directory, or let the user write there",
            )


def _check_listen(target: Target, address: str) -> Iterator[ConfigError]:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind(socket_address(address, 0))
    except OSError as exc:
        yield ConfigError(
            f"{address} cannot be listened on: {exc.strerror}",
            where=_place(target, "LISTEN", address),
            remedy="give an address of this host, or none for all",
        )


def _check_directory(target: Target, variable: str, directory: str) -> Iterator[ConfigError]:
    if not Path(directory).is_dir():
        yield ConfigError(
            f"{directory} is not a directory",
            where=_place(target, variable, directory),
            remedy="give an existing directory",
        )


def _check_database(target: Target, settings: ServerSettings, account: Account) -> Iterator[ConfigError]:
    database = settings.ssl
    if database is None:
        return
    if database.exists():
        fits = database.is_dir() and _may_write(account, database)
        problem = f"{database} is no directory that user {account.name} may write"
        remedy = "let the server's user own its certificate database"
    else:
        fits = _may_write(account, database.parent)
        problem = f"certificate database {database} is missing, and user {account.name} cannot make it"
        remedy = "make its parent directory, and let the server's user write there"
    if not fits:
        yield ConfigError(problem, where=_place(target, "SSL", str(database)), remedy=remedy)


def _may_write(account: Account, path: Path) -> bool:
    """Whether a user may write a file, or create files in a directory; False if it is missing."""
    # The kernel decides, as that user: modes alone do not (ACLs, read-only mounts).
    if account.is_caller:
        return os.access(path, os.W_OK | os.X_OK if path.is_dir() else os.W_OK, effective_ids=True)
    conditions = ["-w", str(path), *(["-a", "-x", str(path)] if path.is_dir() else [])]
    asked = subprocess.run(
        ["/usr/bin/test", *conditions],
        check=False,
        cwd="/",
        user=account.uid,
        group=account.gid,
        extra_groups=account.groups,
    )
    return asked.returncode == 0


def _place(target: Target, variable: str, value: str) -> str:
    """Return where a setting is given: a file and line, or the option."""
    if target.where is None:
        return f"{_OPTIONS[variable]} {value}"
    return line_of(target.where, variable, value)


def _first_port() -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(_FIRST_PORT.read_text(encoding="ascii"))
    return 1024


def _single_faults(fault: ConfigError) -> list[ConfigError]:
    return list(fault.faults) if isinstance(fault, ConfigFaults) else [fault]
