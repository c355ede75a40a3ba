"""``stap-server report``: one archive for a bug report, without keys and without clients' scripts.

The contents are listed here, never collected by pattern: what nobody thought of stays out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, TypeVar

import anyio

from stapsrv import __version__
from stapsrv.config.environment import PREFIX
from stapsrv.config.global_settings import DEFAULT_FILES
from stapsrv.config.table import GLOBAL_SETTINGS, SERVER_SETTINGS
from stapsrv.control.cli.commands.common import LineParser, absolute_path, guarded
from stapsrv.control.cli.commands.status import status_of_all
from stapsrv.control.cli.console import status_json
from stapsrv.doctor.command import owner_parser, run_as_server_user, run_checks
from stapsrv.doctor.context import DoctorContext, load
from stapsrv.doctor.findings import Finding, document_of
from stapsrv.doctor.redact import without_passwords, without_scripts
from stapsrv.errors import ConfigError, StapsrvError, TranslatorError, UsageError
from stapsrv.observe.sinks import stream_descriptor
from stapsrv.process import run_process_tree
from stapsrv.system.blocking import BlockingCalls

_T = TypeVar("_T")
_PROGRAM = "stap-server report"
_NAME = "stapsrv-report"
# Of the end of each log: some thousand requests.
_LOG_BYTES = 1024 * 1024
# Of each configuration file.
_FILE_BYTES = 64 * 1024
_COMMAND_S = 20.0
# For each file, whose file system may hang.
_TIMEOUT_S = 30.0
_LIBRARIES = ("anyio", "attrs", "cryptography", "structlog", "trio", "zeroconf")
_REPORTED_VARIABLES = frozenset(
    {"PATH", "LANG", "LC_ALL", "TMPDIR", "TZ", "HOME", "SYSTEMTAP_DIR", "SYSTEMTAP_STAP", "DEBUGINFOD_URLS"}
) | {f"{PREFIX}{row.variable}" for row in (*GLOBAL_SETTINGS, *SERVER_SETTINGS)}


@guarded(_PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-server report …``; returns the exit status."""
    given = _parser().parse_args(argv)
    now = time.time()
    if str(given.output) == "-":
        if sys.stdout.isatty():
            raise UsageError("an archive is no text for a terminal", remedy="name a file with -o")
        return _collect(sys.stdout.buffer, given, now)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    target = absolute_path(given.output or f"{_NAME}-{stamp}.tar.gz")
    try:
        # Whatever the umask: a report shows what only the host's administrators know.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        problem = f"cannot be made ({exc.strerror})"
        raise ConfigError(problem, where=str(target), remedy="name another") from exc
    status = 1
    try:
        with os.fdopen(descriptor, "wb") as stream:
            status = _collect(stream, given, now)
    except OSError as exc:
        problem = f"cannot be written ({exc.strerror})"
        raise ConfigError(problem, where=str(target), remedy="write elsewhere, with -o") from exc
    finally:
        if status:
            target.unlink(missing_ok=True)
    if status:
        return status
    sys.stderr.write(f"{_PROGRAM}: look through it before you send it: tar -xzOf {target} | less\n")
    sys.stdout.write(f"{target}\n")
    return 0


def contents(context: DoctorContext, now: float) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file of the archive; ``now`` is in seconds since 1970.

    The texts may still have passwords in URLs.
    """
    yield "versions.json", json.dumps(_versions(now), indent=2) + "\n"
    shown = {name: value for name, value in context.environ.items() if name in _REPORTED_VARIABLES}
    yield "environment.json", json.dumps(shown, indent=2, sort_keys=True) + "\n"
    for command in ("stap", "gcc", "make"):
        yield f"commands/{command}.txt", anyio.run(_output_of, (command, "--version"))
    yield from _configuration(context)
    status = partial(status_of_all, context.invocation.config_file, context.environ)
    yield "status.json", _read_or_explain(lambda: status_json(status()))
    findings: list[Finding] = []
    anyio.run(run_checks, context, findings.append)
    yield "doctor.json", document_of(findings)
    for number, log in enumerate(_logs(context)):
        yield f"logs/{number}-{log.name}", _read_or_explain(partial(_end_of, log))


def write_archive(stream: BinaryIO, files: Iterator[tuple[str, str]], now: float) -> None:
    """Write a compressed tar archive with one directory, whose files have no owner and no passwords."""
    with tarfile.open(fileobj=stream, mode="w|gz") as archive:
        for name, text in files:
            data = without_passwords(text).encode("utf-8", "backslashreplace")
            entry = tarfile.TarInfo(f"{_NAME}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(now), 0o600
            archive.addfile(entry, io.BytesIO(data))


def _collect(stream: BinaryIO, given: argparse.Namespace, now: float) -> int:
    """Write the archive, as the servers' user; returns the exit status."""
    status = run_as_server_user(given, "report", "-o", "-", output=stream)
    if status is not None:
        return status
    context = anyio.run(load, given.config, os.environ)
    write_archive(stream, contents(context, now), now)
    return 0


def _parser() -> LineParser:
    parser = owner_parser(
        _PROGRAM,
        description="Put into one archive what a bug report needs: versions, configuration, status, the end "
        "of the logs and the doctor's answers. It holds no keys, and no scripts of clients.",
        epilog=f"example: {_PROGRAM} -o report.tar.gz",
    )
    where = f"a new file, or - for standard output (default: {_NAME}-TIME.tar.gz here)"
    parser.add_argument("-o", dest="output", metavar="FILE", help=where)
    return parser


def _read_or_explain(read: Callable[[], str]) -> str:
    """Return what ``read`` does; a line with the reason where that fails or a file system hangs."""
    try:
        return anyio.run(partial(BlockingCalls().run, read, timeout_s=_TIMEOUT_S))
    except OSError as exc:
        return f"# {exc.filename or 'this'} cannot be read: {exc.strerror}\n"
    except StapsrvError as exc:
        return f"# {exc}\n"


def _versions(now: float) -> Mapping[str, object]:
    installed = metadata.distributions()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "stapsrv": __version__,
        "python": sys.version,
        "libraries": {each.name: each.version for each in installed if each.name in _LIBRARIES},
        "kernel": platform.uname()._asdict(),
        "system": _os_release(),
    }


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


async def _output_of(command: Sequence[str]) -> str:
    try:
        outcome = await run_process_tree(command, deadline_s=_COMMAND_S)
    except TranslatorError as exc:
        return f"{exc}\n"
    return (outcome.stdout + outcome.stderr).decode("utf-8", "replace")


def _configuration(context: DoctorContext) -> Iterator[tuple[str, str]]:
    """Give the global files and the servers' files, as far as they can be read."""
    named = context.invocation.config_file
    for path in (*DEFAULT_FILES, *([] if named is None else [named])):
        # The context was loaded from them, so their file systems do not hang.
        if path.exists():
            name = str(path).strip("/").replace("/", "_")
            yield f"configuration/global/{name}", _read_or_explain(partial(_beginning_of, path))
    paths = [file.path for file in _found(lambda: context.inventory.files)]
    for path in filter(Path.is_absolute, paths):
        yield f"configuration/servers/{path.name}", _read_or_explain(partial(_beginning_of, path))


def _found(read: Callable[[], Sequence[_T]]) -> Sequence[_T]:
    """Return what ``read`` does; nothing where that fails or a file system hangs."""
    try:
        return anyio.run(BlockingCalls().run, read)
    except (OSError, ConfigError):
        return ()


def _logs(context: DoctorContext) -> list[Path]:
    """Return the log files of the supervisor and the servers, each once."""
    servers = _found(lambda: context.servers)
    logs = [context.settings.log_file, *(server.log for server in servers if server.log is not None)]
    return [log for log in dict.fromkeys(logs) if stream_descriptor(log) is None]


def _beginning_of(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_FILE_BYTES).decode("utf-8", "replace")


def _end_of(path: Path) -> str:
    """Return the last whole lines of a log, without clients' scripts."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LOG_BYTES))
        data = file.read(_LOG_BYTES)
    # The rest of a line that was cut could begin within a script.
    whole = data if size <= _LOG_BYTES else data.partition(b"\n")[2]
    return f"# the end of {path}\n{without_scripts(whole.decode('utf-8', 'replace'))}"
