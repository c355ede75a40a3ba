"""stap's command-line grammar, and the privilege that a request asks for.

A signature states that stap ran in the restricted mode that the request asked for. So this parser must
never read a privilege where stap reads another. Three things see to it: the grammar is getopt_long's,
with the table of the stap that is installed (:mod:`stapsrv.compile.engine.installed_options`); whatever stap
would refuse, or whose meaning we do not know, gives no privilege at all, so nothing is signed; and what was
read here is put in front of the client's arguments (:func:`privilege_arguments`), where a second, different
level makes stap fail.

Source of what is stated here: PROTOCOL, privilege and signing; the real stap agrees (see the tests).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence

import attrs

from stapsrv.text import printable_bytes


class Privilege(enum.Enum):
    """The privilege of a script on its host, as ``--privilege`` names it."""

    # All; what stap assumes without an option. Such modules are not signed.
    STAPDEV = "stapdev"
    STAPSYS = "stapsys"
    STAPUSR = "stapusr"


class OptionValue(enum.Enum):
    """Whether an option takes a value."""

    NONE = enum.auto()
    REQUIRED = enum.auto()
    OPTIONAL = enum.auto()


# In getopt's own notation: a colon after each letter that takes a value.
_SHORT_OPTIONS = "hVvtp:I:e:E:o:R:r:a:m:kgPc:x:D:bs:uqiwl:d:L:FS:B:J:jWG:T:"

_WITHOUT_VALUE = """
    all-modules benchmark-sdt bpf check-version clean-cache client-options disable-cache dump-functions
    dump-probe-aliases dump-probe-types dyninst example help interactive ldd no-global-var-display
    poison-cache remote-prefix save-uprobes skip-badvars suppress-handler-errors suppress-time-limits
    unprivileged version
"""
_WITH_VALUE = """
    benchmark-sdt-loops benchmark-sdt-threads compatible modinfo privilege remote rlimit-as rlimit-cpu
    rlimit-fsize rlimit-nproc rlimit-stack runtime sysenv sysroot target-namespaces tmpdir use-http-server vp
"""
_WITH_OPTIONAL_VALUE = """
    color colour download-debuginfo list-servers monitor prologue-searching sign-module trust-servers
    use-server use-server-on-error
"""
# Of SystemTap 5; none of them lifts what a privilege forbids.
_NEWER = frozenset({"build-as", "debug", "language-server", "semantic-keep-going"})

# Two spellings of one option do not make an abbreviation ambiguous.
_SPELLINGS = {"colour": "color"}
_PRIVILEGE_OPTIONS = frozenset({"privilege", "unprivileged"})

_SHORT = {
    ord(letter): (letter, OptionValue.REQUIRED if colon else OptionValue.NONE)
    for letter, colon in re.findall("([^:])(:?)", _SHORT_OPTIONS)
}
_LONG_4_8: Mapping[str, OptionValue | None] = {
    **dict.fromkeys(_WITHOUT_VALUE.split(), OptionValue.NONE),
    **dict.fromkeys(_WITH_VALUE.split(), OptionValue.REQUIRED),
    **dict.fromkeys(_WITH_OPTIONAL_VALUE.split(), OptionValue.OPTIONAL),
}
# Those whose meaning is known: a module that was made with any other is not signed.
_KNOWN = _NEWER | {*_LONG_4_8, *(name for name, _value in _SHORT.values())}


@attrs.frozen
class OptionTable:
    """The long options that one stap has, and what values they take; None as long as that is not known.

    The short ones are the same in all versions.
    """

    long: Mapping[str, OptionValue | None]

    def named(self, argument: bytes) -> str | None:
        """Return the long option that an argument names, if it does and there is one."""
        if not argument.startswith(b"--"):
            return None
        try:
            return self.long_name(argument[2:].partition(b"=")[0])
        except _GrammarError:
            return None

    def long_name(self, stated: bytes) -> str:
        """Return the option that ``stated`` names in full, else the only one that it abbreviates."""
        text = stated.decode("ascii", "replace")
        if text in self.long:
            return _SPELLINGS.get(text, text)
        meant = {_SPELLINGS.get(name, name) for name in self.long if name.startswith(text)}
        if not meant:
            raise _GrammarError(f"--{printable_bytes(stated)} is unknown")
        if len(meant) > 1:
            raise _GrammarError(f"--{printable_bytes(stated)} could mean {', '.join(sorted(meant))}")
        return meant.pop()


STAP_4_8 = OptionTable(_LONG_4_8)
"""Of SystemTap 4.8, on which those of later ones build."""


@attrs.frozen
class ParsedOptions:
    """An argument list as getopt_long reads it, up to a fault that stops it."""

    options: tuple[tuple[str, bytes | None], ...]  # names without dashes, in full; values or None
    operands: tuple[bytes, ...]  # the script and its own arguments
    fault: str | None = None


def parse_options(arguments: Sequence[bytes], table: OptionTable = STAP_4_8) -> ParsedOptions:
    """Read a client's arguments as the stap with that table does.

    Options and operands may be mixed, ``--`` ends the options. Short options may be clustered, long ones
    abbreviated as far as they stay unambiguous; an optional value must be attached (``--color=always``), a
    required one may stand apart. ``arguments`` begin after the program's name and the server's own options.
    """
    if any(b"\0" in argument for argument in arguments):
        return ParsedOptions((), (), "an argument holds a NUL")
    options: list[tuple[str, bytes | None]] = []
    operands: list[bytes] = []
    rest = list(reversed(arguments))
    try:
        while rest:
            _parse_next(rest, table, options, operands)
    except _GrammarError as exc:
        return ParsedOptions(tuple(options), tuple(operands), str(exc))
    return ParsedOptions(tuple(options), tuple(operands))


def without_option(
    arguments: Sequence[bytes], word: bytes, table: OptionTable = STAP_4_8
) -> tuple[bytes, ...]:
    """Return arguments less the options that are exactly ``word``; all where stap cannot read them."""
    if word not in arguments or parse_options(arguments, table).fault is not None:
        return tuple(arguments)
    kept: list[bytes] = []
    rest = list(reversed(arguments))
    while rest:
        first = len(arguments) - len(rest)
        _parse_next(rest, table, [], [])
        read = arguments[first : len(arguments) - len(rest)]
        if list(read) != [word]:
            kept += read
    return tuple(kept)


def requested_privilege(arguments: Sequence[bytes], table: OptionTable = STAP_4_8) -> Privilege | None:
    """Return the privilege that a client asks for, or None where nothing may be signed.

    None means that the arguments cannot be read, name an unknown level, or name two, so that stap is bound to
    fail; or that they have an option of which nobody here knows what it does.
    """
    parsed = parse_options(arguments, table)
    levels = {_level(name, value) for name, value in parsed.options if name in _PRIVILEGE_OPTIONS}
    if parsed.fault is not None or len(levels) > 1:
        return None
    if any(name not in _KNOWN for name, _value in parsed.options):
        return None
    return levels.pop() if levels else Privilege.STAPDEV


def privilege_arguments(privilege: Privilege | None) -> tuple[bytes, ...]:
    """Return what goes in front of ``--client-options`` so that stap cannot read another privilege."""
    # Full privilege is not signed, and the operator may have set a lower one in stap's own rc file.
    if privilege is None or privilege is Privilege.STAPDEV:
        return ()
    return (b"--privilege=" + privilege.value.encode("ascii"),)


_LEVELS: Mapping[bytes | None, Privilege] = {level.value.encode("ascii"): level for level in Privilege}


class _GrammarError(Exception):
    """Ends the parse where getopt_long stops; never leaves this module."""


def _parse_next(
    rest: list[bytes],
    table: OptionTable,
    options: list[tuple[str, bytes | None]],
    operands: list[bytes],
) -> None:
    """Read the next option with its value, an operand, or all after ``--``; ``rest`` is in reverse order."""
    argument = rest.pop()
    if argument == b"--":
        operands += reversed(rest)
        rest.clear()
    elif argument.startswith(b"--"):
        options.append(_parse_long(argument, rest, table))
    elif argument.startswith(b"-") and argument != b"-":
        _parse_cluster(argument, rest, options)
    else:
        operands.append(argument)


def _parse_long(argument: bytes, rest: list[bytes], table: OptionTable) -> tuple[str, bytes | None]:
    stated, equals, attached = argument.removeprefix(b"--").partition(b"=")
    name = table.long_name(stated)
    takes = table.long[name]
    value = attached if equals else None
    if takes is None:
        raise _GrammarError(f"whether --{name} takes a value is not known")
    if takes is OptionValue.NONE and equals:
        raise _GrammarError(f"--{name} takes no value")
    if takes is OptionValue.REQUIRED and not equals:
        if not rest:
            raise _GrammarError(f"--{name} needs a value")
        value = rest.pop()
    return name, value


def _parse_cluster(argument: bytes, rest: list[bytes], options: list[tuple[str, bytes | None]]) -> None:
    letters = argument[1:]
    for position, letter in enumerate(letters, start=1):
        if letter not in _SHORT:
            raise _GrammarError(f"-{printable_bytes(bytes([letter]))} is unknown")
        name, takes = _SHORT[letter]
        if takes is OptionValue.NONE:
            options.append((name, None))
            continue
        value = letters[position:]
        if not value:
            if not rest:
                raise _GrammarError(f"-{name} needs a value")
            value = rest.pop()
        options.append((name, value))
        return


def _level(name: str, value: bytes | None) -> Privilege | None:
    return Privilege.STAPUSR if name == "unprivileged" else _LEVELS.get(value)
