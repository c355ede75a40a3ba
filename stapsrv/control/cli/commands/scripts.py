"""``stap-server scripts``: collections of scripts, and for which kernels they compile (docs/scripts.md)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from stapsrv.config.compilation import Compilation
from stapsrv.config.configured import read_configured_or_environ
from stapsrv.config.files import decode_config, unwritable_reason, with_value, without_value
from stapsrv.config.global_settings import DEFAULT_FILES, lay_over
from stapsrv.control.cli.commands.common import LineParser, VerbParser, absolute_path, export, guarded
from stapsrv.control.cli.console import encode_document
from stapsrv.control.cli.table import aligned, terminal_width
from stapsrv.control.client.accounts import caller_name
from stapsrv.control.client.discovery import SOCKET_NAME
from stapsrv.control.client.sync import SupervisorNotRunning, SyncControlClient
from stapsrv.control.client.whereabouts import own_settings, own_stat_paths
from stapsrv.control.protocol.schema import ScriptProgressInfo, ScriptReportInfo
from stapsrv.errors import ConfigError, UsageError
from stapsrv.scripts.directory import read_collection
from stapsrv.scripts.history import decode_history, history_lines
from stapsrv.scripts.matrix import Cell, Difference
from stapsrv.scripts.page import html_page
from stapsrv.scripts.report import Report, junit_xml, report_json, result_from, text_lines
from stapsrv.text import printable

_PROGRAM = "stap-server scripts"
_VARIABLE = Compilation.scripts.variable
_NONE = 2
_BAR = 24
_ERASE_LINE = "\r\x1b[K"


@guarded(_PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-server scripts``; return the exit status."""
    given = _parser().parse_args(argv)
    match given.verb:
        case "add" | "remove":
            return _edit(given.verb, given.directory, given.config_file, given.user)
        case "list":
            return _list(given.config_file, as_json=given.json)
        case "history":
            return _history(given.name, given.config_file, given.user, as_json=given.json)
    with _connect(given.config_file, given.user) as client:
        progress = _Progress()
        try:
            found = client.check_scripts(given.release, changed=given.changed, on_script=progress.show)
        finally:
            progress.clear()
    report = _report(found)
    if given.junit is not None:
        export(junit_xml(report), given.junit, is_text=True)
    if given.html is not None:
        page = html_page(report, now=datetime.now().astimezone())
        export(page.encode("utf-8", "replace"), given.html, is_text=True)
    if given.json:
        sys.stdout.write(encode_document(report_json(report)))
    elif report.results:
        sys.stdout.write("".join(f"{line}\n" for line in text_lines(report)))
    else:
        sys.stderr.write(f"{_PROGRAM}: there is nothing to check; add a directory with {_PROGRAM} add\n")
    return report.exit_status


def _report(found: ScriptReportInfo) -> Report:
    return Report(
        tuple(result_from(row) for row in found["results"]),
        tuple(
            Difference(Cell(row["collection"], row["script"], row["release"]), row["text"])
            for row in found["differences"]
        ),
    )


class _Progress:
    """The last line of the terminal, if there is one: how many scripts are checked, and the last of them."""

    def __init__(self) -> None:
        self._width = terminal_width(os.environ) if sys.stderr.isatty() else 0

    def show(self, step: ScriptProgressInfo) -> None:
        """Show a result."""
        if self._width:
            filled = _BAR * step["done"] // max(1, step["total"])
            bar = f"[{'#' * filled}{'.' * (_BAR - filled)}] {step['done']}/{step['total']}"
            result = step["result"]
            line = f"{bar}  {result['script']} on {result['release']}: {result['verdict']}"
            self._write(printable(line)[: self._width - 1])

    def clear(self) -> None:
        """Leave nothing of it."""
        if self._width:
            self._write("")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{_ERASE_LINE}{line}")
        sys.stderr.flush()


def _history(name: str, config_file: Path | None, user: str | None, *, as_json: bool) -> int:
    with _connect(config_file, user) as client:
        found = client.script_history(name)
    history = decode_history({"version": 1, **found})
    if as_json:
        sys.stdout.write(encode_document(found))
    elif history.cells:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in history_lines(history.cells)))
    else:
        sys.stderr.write(f"{_PROGRAM}: nothing is known of {name}: it was never checked\n")
    return 0 if history.cells else _NONE


def _list(config_file: Path | None, *, as_json: bool) -> int:
    """Show the collections that are configured, and the scripts that cannot be used."""
    settings = own_settings(os.environ, config_file)
    wanted: dict[str, list[str]] = {}
    for directory in settings.tuning.get(Compilation.scripts.attribute, ()):
        wanted.setdefault(directory, []).append("all")
    for file in read_configured_or_environ(settings.config_path, os.environ):
        if file.settings is not None:
            for directory in file.settings.compilation.scripts:
                wanted.setdefault(directory, []).append(file.settings.nickname or file.path.name)
    found = {directory: read_collection(directory) for directory in wanted}
    faults = [
        *(f"{directory}: {each.fault}" for directory, each in found.items() if each.fault is not None),
        *(f"{each.directory}/{one.fault}" for each in found.values() for one in each.scripts if one.fault),
    ]
    if as_json:
        rows = [
            {
                "directory": directory,
                "servers": servers,
                "scripts": [one.name for one in found[directory].scripts],
            }
            for directory, servers in wanted.items()
        ]
        sys.stdout.write(json.dumps({"collections": rows, "faults": faults}, indent=2) + "\n")
    elif wanted:
        cells = [
            [directory, str(len(found[directory].scripts)), ", ".join(servers)]
            for directory, servers in wanted.items()
        ]
        table = aligned([["DIRECTORY", "SCRIPTS", "SERVERS"], *cells], right={1})
        sys.stdout.write("".join(f"{line}\n" for line in [*table, *map(printable, faults)]))
    else:
        sys.stderr.write(f"{_PROGRAM}: no collection is configured\n")
    if not wanted:
        return _NONE
    return 1 if faults else 0


def _edit(verb: str, directory: Path, config_file: Path | None, user: str | None) -> int:
    """Add a directory to the global file or take it out, and have a running supervisor follow."""
    path, value = _global_file(config_file), str(directory)
    if (reason := unwritable_reason(value)) is not None:
        raise UsageError(f"the directory's name {reason}")
    try:
        text = decode_config(path.read_bytes(), where=str(path)) if path.exists() else ""
        present = value in _scripts_in(text, path)
        if verb == "add":
            if not directory.is_dir():
                raise ConfigError("is no directory", where=value, remedy="make it, or name another")
            changed = text if present else with_value(text, _VARIABLE, value)
        else:
            if not present:
                raise ConfigError(f"{value} is not among its {_VARIABLE}", where=str(path))
            changed = without_value(text, _VARIABLE, value)
        _replace(path, changed)
    except OSError as exc:
        remedy = "run this as root, or name your own file with -c"
        raise ConfigError(f"cannot be changed ({exc.strerror})", where=str(path), remedy=remedy) from exc
    sys.stdout.write(f"{path}: {value} {'added' if verb == 'add' else 'removed'}\n")
    try:
        with _connect(config_file, user) as client:
            faults = [outcome["error"] for outcome in client.reload(config_file) if outcome["error"]]
    except SupervisorNotRunning:
        return 0
    sys.stderr.write("".join(f"{_PROGRAM}: {fault}\n" for fault in faults))
    return 1 if faults else 0


def _replace(path: Path, text: str) -> None:
    from stapsrv.system.atomic_file import replace_file  # noqa: PLC0415 - only where a file changes

    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    replace_file(path.resolve(), text, mode=mode)


def _scripts_in(text: str, path: Path) -> tuple[str, ...]:
    from stapsrv.config.global_settings import SYSTEM_SETTINGS  # noqa: PLC0415 - only where a file changes

    settings = lay_over(SYSTEM_SETTINGS, text, where=str(path))
    found: tuple[str, ...] = settings.tuning.get(Compilation.scripts.attribute, ())
    return found


def _global_file(config_file: Path | None) -> Path:
    if config_file is not None:
        return config_file
    # Of two, the later one is laid over the other.
    return next((path for path in reversed(DEFAULT_FILES) if path.exists()), DEFAULT_FILES[-1])


def _connect(config_file: Path | None, user: str | None) -> SyncControlClient:
    settings = own_settings(os.environ, config_file)
    name = user or settings.default_user(caller_name(), euid=os.geteuid())
    paths = own_stat_paths(settings, config_file, os.environ)
    for path in paths[:-1]:
        try:
            return SyncControlClient(path / name / SOCKET_NAME)
        except SupervisorNotRunning:
            continue
    return SyncControlClient(paths[-1] / name / SOCKET_NAME)


def _parser() -> LineParser:
    parser = VerbParser(
        _PROGRAM,
        description="Look after collections of scripts: which of them compile for which kernel releases",
        example="check --changed",
        whose="the user whose supervisor it is",
    )
    common = parser.common
    common.add_argument(
        *("-c", "--config-file"),
        dest="config_file",
        type=absolute_path,
        metavar="FILE",
        help="a global configuration file, read after the default one",
    )
    for verb, text in (
        ("add", "add a directory of scripts to the global configuration file"),
        ("remove", "take a directory of scripts out of the global configuration file"),
    ):
        edit = parser.add_verb(verb, text, example="/srv/scripts")
        edit.add_argument("directory", metavar="DIR", type=absolute_path)
    listing = parser.add_verb(
        "list", "list the collections that are configured, and scripts that cannot be used"
    )
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    check = parser.add_verb("check", "compile every script for every release, and print what came of it")
    check.add_argument(
        "-r",
        dest="release",
        action="append",
        default=[],
        metavar="RELEASE",
        help="only for it; may be repeated",
    )
    check.add_argument("--changed", action="store_true", help="compile only what is not known already")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    for form, text in (("junit", "JUnit's XML, for CI systems"), ("html", "one page of HTML")):
        check.add_argument(f"--{form}", type=absolute_path, metavar="FILE", help=f"write {text}, too")
    history = parser.add_verb(
        "history", "tell since which kernel or change a script fails", example="disktop"
    )
    history.add_argument("name", metavar="NAME")
    history.add_argument("--json", action="store_true", help="print one JSON document")
    return parser
