"""The ``VARIABLE=VALUE`` grammar: of the global file, of each server's file, and of ``.stat`` files.

Text in, values out; whoever calls has read the file. The grammar (manual page, CONFIGURATION) is no
shell's: a value is all that follows the ``=``, blanks, quotes and tildes included. Around it the
original forgives blanks before a variable and before a ``#``, and so does this module; it drops blanks
after a value, which would be no longer as-is, so this module keeps them.

The parts that the command line's ``status`` needs must not cost it the import of attrs. So nothing here
imports it at the top, and the two functions that deal in :class:`ServerSettings` import that late.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from stapsrv.config.log_format import parse_log_format
from stapsrv.config.tunables import BY_ATTRIBUTE, SERVER_TUNABLES, TUNABLES, Scope, Tunable, with_tuning
from stapsrv.errors import ConfigError
from stapsrv.text import shortened

if TYPE_CHECKING:
    from stapsrv.config.settings import ServerSettings

_ASSIGNMENT = re.compile(r"(?P<variable>[A-Za-z_][A-Za-z0-9_]*)(?P<adds>\+?)=(?P<value>.*)", re.DOTALL)
_BLANKS = " \t"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EMPTY_ARRAY = ("", "()")
_MAX_DIGITS = 18
"""Of a number: more is a mistake, and Python refuses to convert thousands of them."""
_SHOWN_CHARACTERS = 60
"""Of a wrong line, in the message about it."""
_OF_SUPERVISOR = frozenset(row.variable for row in TUNABLES if row.scope is Scope.SUPERVISOR)
_UNWRITABLE = {"\n": "a line break", "\r": "a carriage return", "\0": "a NUL"}


class ConfigFaults(ConfigError):
    """All that is wrong with one file; ``str()`` has one line for each fault.

    Attributes:
        faults: in the order of their lines, at least one.
    """

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


class NumberRange(NamedTuple):
    """The whole numbers that an option takes.

    Attributes:
        least: the smallest.
        most: the largest, or None.
        meaning: what a person should write, for messages.
    """

    least: int
    most: int | None
    meaning: str

    def parse(self, text: str) -> int:
        """Convert decimal digits; blanks around them are forgiven.

        Raises:
            ValueError: not such a number; the text is ``meaning``.
        """
        digits = text.strip(_BLANKS)
        if not re.fullmatch(rf"[0-9]{{1,{_MAX_DIGITS}}}", digits):
            raise ValueError(self.meaning)
        return self.check(int(digits))

    def check(self, number: int) -> int:
        """Return ``number`` if it is in the range.

        Raises:
            ValueError: it is not; the text is ``meaning``.
        """
        if number < self.least or (self.most is not None and number > self.most):
            raise ValueError(self.meaning)
        return number


PORTS = NumberRange(0, 65_535, "a port number from 0 to 65535 (0: the kernel picks one)")
THREADS = NumberRange(0, None, "a number of threads, 0 or more (0: one request at a time)")
REQUEST_BYTES = NumberRange(1, None, "a number of bytes, 1 or more")


class Variable(NamedTuple):
    """One variable of a file.

    Attributes:
        name: as written in the file.
        attribute: of the settings that it sets.
        parse: turns a value that is not empty into the attribute's, or for an array into one element;
            a ValueError's text says what was expected.
        array: holds any number of values; ``+=`` adds one.
        encode: the reverse of ``parse``.
    """

    name: str
    attribute: str
    parse: Callable[[str], object] = str
    array: bool = False
    encode: Callable[[object], str] = str

    @classmethod
    def of(cls, row: Tunable) -> Variable:
        """Return the variable of a row of the table."""
        return cls(row.variable, row.attribute, row.kind.parse, row.array, row.kind.encode)

    def value_in(self, settings: ServerSettings) -> object:
        """Return its value in a server's settings; None where a tunable is not set."""
        if self.attribute in BY_ATTRIBUTE:
            return settings.tuning.get(self.attribute)
        value: object = getattr(settings, self.attribute)
        return value


SERVER_VARIABLES = (
    # In the order in which the original writes them to a .stat file.
    Variable("ARCH", "arch"),
    Variable("USER", "user"),
    Variable("BUILD", "build", array=True),
    Variable("INCLUDE", "include", array=True),
    Variable("DEFINE", "define", array=True),
    Variable("NICKNAME", "nickname"),
    Variable("RUNTIME", "runtime"),
    Variable("RELEASE", "releases", array=True),
    Variable("LOG", "log", Path),
    Variable("PORT", "port", PORTS.parse),
    Variable("SSL", "ssl", Path),
    Variable("MAXTHREADS", "max_threads", THREADS.parse),
    Variable("MAXREQSIZE", "max_request_bytes", REQUEST_BYTES.parse),
    Variable("MAXCOMPRESSEDREQ", "max_compressed_bytes", REQUEST_BYTES.parse),
    # Of our own.
    Variable("LOG_FORMAT", "log_format", parse_log_format),
    *map(Variable.of, SERVER_TUNABLES),
)


def decode_config(data: bytes, *, where: str) -> str:
    """Decode a file's content, which must be UTF-8 (a byte order mark is skipped).

    Raises:
        ConfigError: it is not; names the line.
    """
    data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"byte 0x{data[exc.start]:02x} is not UTF-8 text",
            where=f"{where}:{line}",
            remedy="save the file as UTF-8",
        ) from exc


def parse_assignments(text: str, *, where: str) -> tuple[Assignment, ...]:
    """Read the assignments of a file, in order; which variables there are is not its business.

    Args:
        text: the file's content.
        where: the file's name, for messages.

    Raises:
        ConfigFaults: lines that are neither assignment, comment nor blank.

    Source: manual page, CONFIGURATION; blanks before a variable or a ``#`` are the original's behaviour.
    """
    assignments, faults = _scan(text)
    _raise_if_any(faults, where)
    return tuple(assignments)


def values_from(text: str, *, where: str, variables: Iterable[Variable]) -> dict[str, object]:
    """Read a file whose variables are known: attribute to value, an array's values as a tuple.

    ``X=`` (and ``X=()`` of an array) takes back what came before; attributes that end up unset are left
    out. Of several values for a variable that holds one, the last counts.

    Raises:
        ConfigFaults: everything that is wrong with the file.
    """
    known = {variable.name: variable for variable in variables}
    assignments, faults = _scan(text)
    values: dict[str, object] = {}
    for assignment in assignments:
        try:
            _assign(values, assignment, known)
        except ConfigError as problem:
            faults.append(_Fault(assignment.line, problem))
    _raise_if_any(faults, where)
    return values


def server_settings_from(text: str, *, where: str) -> ServerSettings:
    """Read the settings of one server, from a ``.conf`` or a ``.stat`` file.

    Raises:
        ConfigFaults: everything that is wrong with the file.
    """
    from stapsrv.config.settings import ServerSettings  # noqa: PLC0415 (see the module's docstring)

    values = values_from(text, where=where, variables=SERVER_VARIABLES)
    return ServerSettings(**with_tuning(values))


def encode_server_settings(settings: ServerSettings) -> str:
    """Write settings as a ``.stat`` file has them; :func:`server_settings_from` reads them back equal.

    What has its default is written as an empty value, like in the original; of the table of tunables,
    only what is set is written. ``keep_temporary`` has no variable and is not written.

    Raises:
        ConfigError: a value that no line can hold: one with a line break, an empty one, or not text.
    """
    default = type(settings)()
    lines: list[str] = []
    for variable in SERVER_VARIABLES:
        value = variable.value_in(settings)
        if value is None and variable.attribute in BY_ATTRIBUTE:
            continue
        if isinstance(value, tuple):
            lines += (
                f"{variable.name}+={_writable(variable, variable.encode(element))}" for element in value
            )
        elif value == variable.value_in(default):
            lines.append(f"{variable.name}=")
        else:
            lines.append(f"{variable.name}={_writable(variable, variable.encode(value))}")
    return "".join(f"{line}\n" for line in lines)


def unwritable_reason(value: str) -> str | None:
    """Say why no line of a file could hold ``value``, or return None when one could."""
    for character, name in _UNWRITABLE.items():
        if character in value:
            return f"holds {name}"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return None


class _Fault(NamedTuple):
    """What is wrong with a line; the error does not name its place yet."""

    line: int
    error: ConfigError


def _raise_if_any(faults: Iterable[_Fault], where: str) -> None:
    """Raise all faults as one error, in the order of their lines."""
    errors: list[ConfigError] = []
    for line, error in sorted(faults, key=lambda fault: fault.line):
        error.where = f"{where}:{line}"
        errors.append(error)
    if errors:
        raise ConfigFaults(errors)


def _scan(text: str) -> tuple[list[Assignment], list[_Fault]]:
    """Split a file into assignments and complaints about the other lines."""
    assignments: list[Assignment] = []
    faults: list[_Fault] = []
    if "\r" in text:
        # Said once: a file from another system has one on each line.
        line = text.count("\n", 0, text.index("\r")) + 1
        remedy = "save the file with Unix line ends"
        faults.append(_Fault(line, ConfigError("a carriage return cannot stand in a value", remedy=remedy)))
        text = text.replace("\r", "")
    # Not splitlines(), which would end a line at a form feed or at U+2028.
    for number, whole in enumerate(text.split("\n"), start=1):
        statement = whole.lstrip(_BLANKS)
        if not statement or statement.startswith("#"):
            continue
        found = _ASSIGNMENT.fullmatch(statement)
        if found is None or "\0" in statement:
            problem = f"expected VARIABLE=VALUE, found {_shown(statement)}"
            remedy = "begin comments with '#' and leave no blank before the '='"
            faults.append(_Fault(number, ConfigError(problem, remedy=remedy)))
        else:
            assignments.append(Assignment(number, found["variable"], found["value"], bool(found["adds"])))
    return assignments, faults


def _assign(values: dict[str, object], assignment: Assignment, known: dict[str, Variable]) -> None:
    """Carry out one assignment; raises ConfigError without its place."""
    variable = known.get(assignment.variable)
    if variable is None:
        _refuse_unknown(assignment.variable, known)
    if assignment.adds and not variable.array:
        raise ConfigError(
            f"{variable.name} holds one value, so nothing can be added to it",
            remedy=f"write {variable.name}=VALUE",
        )
    if not variable.array:
        if assignment.value:
            values[variable.attribute] = _converted(variable, assignment.value)
        else:
            values.pop(variable.attribute, None)
        return
    before = values.pop(variable.attribute, ()) if assignment.adds else ()
    assert isinstance(before, tuple)  # noqa: S101 (only this function puts it there)
    added = () if assignment.value in _EMPTY_ARRAY else (_converted(variable, assignment.value),)
    if before or added:
        values[variable.attribute] = (*before, *added)
    else:
        values.pop(variable.attribute, None)


def _converted(variable: Variable, value: str) -> object:
    try:
        return variable.parse(value)
    except ValueError as exc:
        raise ConfigError(f"{variable.name}={_shown(value)[1:-1]}: expected {exc}") from exc


def _refuse_unknown(name: str, known: dict[str, Variable]) -> NoReturn:
    import difflib  # noqa: PLC0415 - takes 2 ms, for a mistake alone

    if name in _OF_SUPERVISOR:
        raise ConfigError(f"{name} is not for one server alone", remedy="set it in the global file")
    nearest = difflib.get_close_matches(name.upper(), known, n=1)
    remedy = (
        f"did you mean {nearest[0]}?" if nearest else f"the variables of this file are {', '.join(known)}"
    )
    raise ConfigError(f"unknown variable {_shown(name)}", remedy=remedy)


def _writable(variable: Variable, value: str) -> str:
    """Return ``value`` if reading it back gives the same."""
    reason = unwritable_reason(value)
    if reason is None and (value in _EMPTY_ARRAY if variable.array else not value):
        reason = "would read as none"
    if reason is not None:
        raise ConfigError(f"{variable.name} cannot be {_shown(value)}: it {reason}")
    return value


def _shown(text: str) -> str:
    """Quote ``text``, not all of it if it is long, so that no terminal obeys it."""
    return repr(shortened(text, _SHOWN_CHARACTERS))
