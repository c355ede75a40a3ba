"""stap's command-line grammar, and the privilege that a request asks for.

A signature states that stap ran in the restricted mode that the request asked for. So this parser must
never read a privilege where stap reads another. Three things see to it: the grammar is getopt_long's,
with stap's own tables; whatever stap would refuse, or we do not know, gives no privilege at all, so
nothing is signed; and what was read here is put in front of the client's arguments
(:func:`privilege_arguments`), where a second, different level makes stap fail.

Source of the tables: PROTOCOL, privilege and signing; the real stap 4.8 agrees with them (see the tests).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence

import attrs

from stapsrv.text import printable_bytes


class Privilege(enum.Enum):
    """What a script may do on its host, as ``--privilege`` names it."""

    # All; what stap assumes without an option. Such modules are not signed.
    STAPDEV = "stapdev"
    STAPSYS = "stapsys"
    STAPUSR = "stapusr"


@attrs.frozen
class ParsedOptions:
    """An argument list as getopt_long reads it, up to a fault that stops it."""

    options: tuple[tuple[str, bytes | None], ...]  # names without dashes, in full; values or None
    operands: tuple[bytes, ...]  # the script and its own arguments
    fault: str | None = None


def parse_options(arguments: Sequence[bytes]) -> ParsedOptions:
    """Read a client's arguments as stap does: options and operands mixed, ``--`` ends the options.

    Short options may be clustered, long ones abbreviated as far as they stay unambiguous; an optional
    value must be attached (``--color=always``), a required one may stand apart. ``arguments`` begin after the
    program's name and the server's own options.
    """
    if any(b"\0" in argument for argument in arguments):
        return ParsedOptions((), (), "an argument holds a NUL")
    options: list[tuple[str, bytes | None]] = []
    operands: list[bytes] = []
    rest = list(reversed(arguments))
    try:
        while rest:
            argument = rest.pop()
            if argument == b"--":
                operands += reversed(rest)
                break
            if argument.startswith(b"--"):
                options.append(_parse_long(argument, rest))
            elif argument.startswith(b"-") and argument != b"-":
                _parse_cluster(argument, rest, options)
            else:
                operands.append(argument)
    except _GrammarError as exc:
        return ParsedOptions(tuple(options), tuple(operands), str(exc))
    return ParsedOptions(tuple(options), tuple(operands))


def requested_privilege(arguments: Sequence[bytes]) -> Privilege | None:
    """Return the privilege that a client asks for, or None where stap is bound to fail.

    None means that the arguments cannot be read, name an unknown level, or name two: nothing is signed.
    """
    parsed = parse_options(arguments)
    levels = {_level(name, value) for name, value in parsed.options if name in _PRIVILEGE_OPTIONS}
    if parsed.fault is not None or len(levels) > 1:
        return None
    return levels.pop() if levels else Privilege.STAPDEV


def privilege_arguments(privilege: Privilege | None) -> tuple[bytes, ...]:
    """Return what goes in front of ``--client-options`` so that stap cannot read another privilege."""
    # Full privilege is not signed, and the operator may have set a lower one in stap's own rc file.
    if privilege is None or privilege is Privilege.STAPDEV:
        return ()
    return (b"--privilege=" + privilege.value.encode("ascii"),)


class _Value(enum.Enum):
    NONE = enum.auto()
    REQUIRED = enum.auto()
    OPTIONAL = enum.auto()


# In getopt's own notation: a colon after each letter that takes a value.
_SHORT_OPTIONS = "hVvtp:I:e:E:o:R:r:a:m:kgPc:x:D:bs:uqiwl:d:L:FS:B:J:jWG:T:"

_WITHOUT_VALUE = """
    all-modules benchmark-sdt bpf check-version clean-cache client-options disable-cache dump-functions
    dump-probe-aliases dump-probe-types dyninst example help interactive language-server ldd
    no-global-var-display poison-cache remote-prefix save-uprobes skip-badvars suppress-handler-errors
    suppress-time-limits unprivileged version
"""
_WITH_VALUE = """
    benchmark-sdt-loops benchmark-sdt-threads compatible modinfo privilege remote rlimit-as rlimit-cpu
    rlimit-fsize rlimit-nproc rlimit-stack runtime sysenv sysroot target-namespaces tmpdir use-http-server vp
"""
_WITH_OPTIONAL_VALUE = """
    build-as color colour download-debuginfo list-servers monitor prologue-searching sign-module trust-servers
    use-server use-server-on-error
"""
# stap 4.8 does not know these and refuses them; later ones do.
NEWER_LONG_OPTIONS = frozenset({"build-as", "language-server"})

# Two spellings of one option do not make an abbreviation ambiguous.
_SPELLINGS = {"colour": "color"}
_PRIVILEGE_OPTIONS = frozenset({"privilege", "unprivileged"})
_LEVELS: Mapping[bytes | None, Privilege] = {level.value.encode("ascii"): level for level in Privilege}


_SHORT = {
    ord(letter): (letter, _Value.REQUIRED if colon else _Value.NONE)
    for letter, colon in re.findall("([^:])(:?)", _SHORT_OPTIONS)
}
_LONG = {
    **dict.fromkeys(_WITHOUT_VALUE.split(), _Value.NONE),
    **dict.fromkeys(_WITH_VALUE.split(), _Value.REQUIRED),
    **dict.fromkeys(_WITH_OPTIONAL_VALUE.split(), _Value.OPTIONAL),
}


class _GrammarError(Exception):
    """Where getopt_long stops; never leaves this module."""


def _parse_long(argument: bytes, rest: list[bytes]) -> tuple[str, bytes | None]:
    stated, equals, attached = argument.removeprefix(b"--").partition(b"=")
    name = _long_name(stated)
    takes = _LONG[name]
    value = attached if equals else None
    if takes is _Value.NONE and equals:
        raise _GrammarError(f"--{name} takes no value")
    if takes is _Value.REQUIRED and not equals:
        if not rest:
            raise _GrammarError(f"--{name} needs a value")
        value = rest.pop()
    return name, value


def _long_name(stated: bytes) -> str:
    """Return the option that ``stated`` names in full, else the only one that it abbreviates."""
    text = stated.decode("ascii", "replace")
    if text in _LONG:
        return _SPELLINGS.get(text, text)
    meant = {_SPELLINGS.get(name, name) for name in _LONG if name.startswith(text)}
    if not meant:
        raise _GrammarError(f"--{printable_bytes(stated)} is unknown")
    if len(meant) > 1:
        raise _GrammarError(f"--{printable_bytes(stated)} could mean {', '.join(sorted(meant))}")
    return meant.pop()


def _parse_cluster(argument: bytes, rest: list[bytes], options: list[tuple[str, bytes | None]]) -> None:
    letters = argument[1:]
    for position, letter in enumerate(letters, start=1):
        if letter not in _SHORT:
            raise _GrammarError(f"-{printable_bytes(bytes([letter]))} is unknown")
        name, takes = _SHORT[letter]
        if takes is _Value.NONE:
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
