"""The ``VARIABLE=VALUE`` grammar: of the global file, of each server's file, and of ``.stat`` files.

The grammar (manual page, CONFIGURATION) is no shell's: a value is all that follows the ``=``, quotes and
tildes included. Like the original's, this parser skips blanks before a variable and before a ``#``, and drops
those at the end of a line.

Light to import, for the command line's ``status``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stapsrv.config.kinds import BLANKS
from stapsrv.config.table import RETIRED, SERVER_SETTINGS, SharedLimits
from stapsrv.config.tuning import with_tuning
from stapsrv.errors import ConfigError
from stapsrv.text import nearest, shortened

if TYPE_CHECKING:
    from stapsrv.config.setting import Setting
    from stapsrv.config.settings import ServerSettings

_ASSIGNMENT = re.compile(r"(?P<variable>[A-Za-z_][A-Za-z0-9_]*)(?P<adds>\+?)=(?P<value>.*)", re.DOTALL)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EMPTY_ARRAY = ("", "()")
_SHOWN_CHARACTERS = 60  # of a wrong line, in the message about it
_SHARED = frozenset(row.variable for row in SharedLimits.rows)
_UNWRITABLE = {"\n": "a line break", "\r": "a carriage return", "\0": "a NUL"}
# Scripts read .stat files, so what the original writes keeps its order; what it does not know comes after.
_ORIGINAL_ORDER = (
    *("ARCH", "USER", "BUILD", "INCLUDE", "DEFINE", "NICKNAME", "RUNTIME", "RELEASE", "LOG", "PORT", "SSL"),
    *("MAXTHREADS", "MAXREQSIZE", "MAXCOMPRESSEDREQ"),
)
_STAT_ROWS = sorted(SERVER_SETTINGS, key=lambda row: (*_ORIGINAL_ORDER, row.variable).index(row.variable))


class ConfigFaults(ConfigError):
    """All faults of one file, in the order of their lines; ``str()`` has one line for each."""

    def __init__(self, faults: Sequence[ConfigError]) -> None:
        first = faults[0]
        super().__init__(first.problem, where=first.where, remedy=first.remedy)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class Assignment(NamedTuple):
    """One line of a file: ``variable=value``, or ``variable+=value`` when ``adds``."""

    line: int
    variable: str
    value: str
    adds: bool
    # Blanks at its end were dropped.
    trimmed: bool = False


def decode_config(data: bytes, *, where: str) -> str:
    """Decode a file's content from UTF-8; a byte order mark is skipped.

    Raises:
        ConfigError: it is not UTF-8; names the line.
    """
    data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        problem = f"byte 0x{data[exc.start]:02x} is not UTF-8 text"
        raise ConfigError(problem, where=f"{where}:{line}", remedy="save the file as UTF-8") from exc


def scan(text: str, *, where: str) -> Iterator[Assignment | ConfigError]:
    """Read a file line by line, whatever its variables are: each assignment, and each line that is none."""
    returned = False
    # Not splitlines(), which would end a line at a form feed or at U+2028.
    for number, whole in enumerate(text.split("\n"), start=1):
        place = f"{where}:{number}"
        if "\r" in whole and not returned:
            # One fault for all: a file from another system has one on each line.
            returned = True
            remedy = "save the file with Unix line ends"
            yield ConfigError("a carriage return cannot stand in a value", where=place, remedy=remedy)
        line = whole.replace("\r", "").lstrip(BLANKS)
        statement = line.rstrip(BLANKS)
        if not statement or statement.startswith("#"):
            continue
        found = _ASSIGNMENT.fullmatch(statement)
        if found is None or "\0" in statement:
            problem = f"expected VARIABLE=VALUE, found {_shown(statement)}"
            remedy = "begin comments with '#' and leave no blank before the '='"
            yield ConfigError(problem, where=place, remedy=remedy)
        else:
            adds, trimmed = bool(found["adds"]), statement != line
            yield Assignment(number, found["variable"], found["value"], adds, trimmed)


def values_from(text: str, *, where: str, rows: Iterable[Setting[Any]]) -> dict[str, Any]:
    """Read a file that may set ``rows``: attribute to value, an array's values as a tuple.

    ``X=`` (and ``X=()`` of an array) takes back what came before; attributes that end up unset are left
    out. Of several values for a variable that holds one, the last counts.

    Raises:
        ConfigFaults: everything that is wrong with the file.
    """
    known = {row.variable: row for row in rows}
    values: dict[str, Any] = {}
    faults: list[ConfigError] = []
    for found in scan(text, where=where):
        if isinstance(found, ConfigError):
            faults.append(found)
        elif found.variable not in RETIRED:
            try:
                _assign(values, found, known)
            except ConfigError as fault:
                fault.where = f"{where}:{found.line}"
                faults.append(fault)
    if faults:
        raise ConfigFaults(faults)
    return values


def warnings_about(text: str, *, where: str) -> tuple[str, ...]:
    """Return a warning for each line of a file that sets a variable without effect, or ends in blanks."""
    return tuple(
        retired_warning(found.variable, where=f"{where}:{found.line}")
        if found.variable in RETIRED
        else f"{where}:{found.line}: blanks at the end of {found.variable} are no part of its value"
        for found in scan(text, where=where)
        if isinstance(found, Assignment) and (found.variable in RETIRED or found.trimmed)
    )


def retired_warning(name: str, *, where: str | None = None) -> str:
    """Return the warning about a variable, or an option, that has no effect any more."""
    return f"{f'{where}: ' if where else ''}{name} has no effect any more and can be removed"


def server_settings_from(text: str, *, where: str) -> ServerSettings:
    """Read the settings of one server, from a ``.conf`` or a ``.stat`` file.

    Raises:
        ConfigFaults: everything that is wrong with the file.
    """
    from stapsrv.config.settings import ServerSettings  # noqa: PLC0415 (see the module's docstring)

    return ServerSettings(**with_tuning(values_from(text, where=where, rows=SERVER_SETTINGS)))


def value_in(row: Setting[Any], settings: ServerSettings) -> object:
    """Return the value of a row in a server's settings; None where a tunable is not set."""
    value: object = settings.tuning.get(row.attribute) if row.tunable else getattr(settings, row.attribute)
    return value


def encode_server_settings(settings: ServerSettings) -> str:
    """Write a ``.stat`` file, which reads back equal but for ``keep_temporary``, which has no variable.

    Raises:
        ConfigError: a value that no line can hold: with a line break, empty, or not text.
    """
    lines: list[str] = []
    for row in _STAT_ROWS:
        value = value_in(row, settings)
        if isinstance(value, tuple):
            lines += (f"{row.variable}+={_writable(row, row.kind.encode(element))}" for element in value)
        elif row.tunable and value is None:
            continue
        elif not row.tunable and value == row.default:
            # As in the original, which writes every variable of its own, and refuses files with others. Of
            # the tunable ones only those that are set are written: the others follow the global file.
            lines += [f"{row.variable}="] if row.variable in _ORIGINAL_ORDER else []
        else:
            lines.append(f"{row.variable}={_writable(row, row.kind.encode(value))}")
    return "".join(f"{line}\n" for line in lines)


def unwritable_reason(value: str) -> str | None:
    """Say why no line of a file could hold ``value``, or return None when one could."""
    for character, name in _UNWRITABLE.items():
        if character in value:
            return f"holds {name}"
    if value.endswith(tuple(BLANKS)):
        return "ends with a blank"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return None


def with_value(text: str, variable: str, value: str) -> str:
    """Return a file's text with a further value of an array, in a line at its end."""
    separator = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{separator}{variable}+={value}\n"


def without_value(text: str, variable: str, value: str) -> str:
    """Return a file's text without the lines that set or add a value of an array."""
    found = [each for each in scan(text, where="") if isinstance(each, Assignment)]
    dropped = {each.line: each for each in found if (each.variable, each.value) == (variable, value)}
    lines = text.split("\n")
    # A line that sets the array takes back what came before, and so must what stays of it.
    kept = [
        (f"{variable}=" if not dropped[number].adds else None) if number in dropped else line
        for number, line in enumerate(lines, start=1)
    ]
    return "\n".join(line for line in kept if line is not None)


def _assign(values: dict[str, Any], assignment: Assignment, known: Mapping[str, Setting[Any]]) -> None:
    row = known.get(assignment.variable)
    if row is None:
        raise _unknown(assignment.variable, known)
    if assignment.adds and not row.array:
        raise ConfigError(
            f"{row.variable} holds one value, so nothing can be added to it",
            remedy=f"write {row.variable}=VALUE",
        )
    if not assignment.adds:
        values.pop(row.attribute, None)
    if not assignment.value or (row.array and assignment.value in _EMPTY_ARRAY):
        return
    try:
        row.add(values, assignment.value)
    except ValueError as exc:
        raise ConfigError(f"{row.variable}={_shown(assignment.value)[1:-1]}: expected {exc}") from exc


def _unknown(name: str, known: Mapping[str, Setting[Any]]) -> ConfigError:
    if name in _SHARED:
        return ConfigError(f"{name} is not for one server alone", remedy="set it in the global file")
    meant = nearest(name.upper(), known)
    remedy = f"did you mean {meant}?" if meant else f"the variables of this file are {', '.join(known)}"
    return ConfigError(f"unknown variable {_shown(name)}", remedy=remedy)


def _writable(row: Setting[Any], value: str) -> str:
    reason = unwritable_reason(value)
    if reason is None and (value in _EMPTY_ARRAY if row.array else not value):
        reason = "would read as none"
    if reason is not None:
        raise ConfigError(f"{row.variable} cannot be {_shown(value)}: it {reason}")
    return value


def _shown(text: str) -> str:
    # Quoted, so that no terminal obeys it.
    return repr(shortened(text, _SHOWN_CHARACTERS))
