"""Every regular expression of the program, and texts that would make one of them slow.

A backtracking matcher is slow where a repetition can begin, or be cut short, in many places before it fails.
So each text repeats a piece that the expression itself is made of, behind a beginning that it accepts and
before an end that it does not.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import re._constants as sre
import re._parser as sre_parser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

PACKAGE = Path(__file__).parents[2] / "stapsrv"
METHODS = frozenset({"match", "fullmatch", "search", "findall", "finditer", "sub", "split"})


@attrs.frozen
class Use:
    """A regular expression, and a method that the program calls on it."""

    where: str
    pattern: re.Pattern[str] | re.Pattern[bytes]
    method: str

    def apply(self, text: str) -> None:
        subject = text.encode("latin-1") if isinstance(self.pattern.pattern, bytes) else text
        found = getattr(self.pattern, self.method)
        if self.method == "sub":
            found(subject[:0], subject)
        elif self.method == "finditer":
            for _match in found(subject):
                pass
        else:
            found(subject)


def uses() -> Iterator[Use]:
    """Find every use in the sources; a pattern that is made while the program runs is an AssertionError."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        module = path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_of_re(node)]
        if not calls:
            continue
        names = vars(importlib.import_module(module))
        # What a constant holds: the pattern itself, or a table of patterns.
        constants = {
            id(inner): target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
            for inner in ast.walk(node.value)
        }
        used = _methods(tree)
        for call in calls:
            where = f"{module}:{call.lineno}"
            name = constants.get(id(call), "")
            try:
                pattern, method = _evaluated(call, names)
                patterns = [pattern]
            except NameError as exc:
                # One of a table that a loop makes.
                patterns, method = list(_patterns(names.get(name))), ""
                if not patterns:
                    raise AssertionError(f"{where}: {exc}: it is made while the program runs") from exc
            methods = {method} if method else used.get(name) or set().union(*used.values())
            yield from (Use(where, pattern, each) for pattern in patterns for each in sorted(methods))


def _patterns(value: object) -> Iterator[re.Pattern[str] | re.Pattern[bytes]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        yield from _patterns(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _patterns(each)


def attacks(pattern: re.Pattern[str] | re.Pattern[bytes], size: int) -> Iterator[str]:
    """Give texts of about ``size`` characters that repeat pieces of what a pattern accepts."""
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    parsed = sre_parser.parse(source, pattern.flags & ~(re.ASCII | re.UNICODE) | re.ASCII)
    heads = list(dict.fromkeys(_beginnings(parsed)))[:20]
    atoms = list(dict.fromkeys(_atoms(parsed)))[:10]
    pieces = dict.fromkeys((*atoms, *heads, *map("".join, itertools.permutations(atoms[:5], 2))))
    for head in ("", *heads[:10]):
        for piece in pieces:
            if piece:
                repeated = piece * (size // len(piece))
                yield from (head + repeated + tail for tail in ("", "\n\0"))


def _is_of_re(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "re"
        and function.attr in {*METHODS, "compile"}
    )


def _evaluated(call: ast.Call, names: dict[str, object]) -> tuple[re.Pattern[str] | re.Pattern[bytes], str]:
    assert isinstance(call.func, ast.Attribute)
    function = call.func.attr
    first = [call.args[0]]
    if function == "compile":
        first += call.args[1:]
    flags = [keyword.value for keyword in call.keywords if keyword.arg == "flags"]
    if function in {"match", "fullmatch", "search", "findall", "finditer"}:
        flags += call.args[2:]
    arguments = [
        eval(compile(ast.Expression(argument), "pattern", "eval"), dict(names))
        for argument in (*first, *flags)
    ]
    return re.compile(*arguments), "" if function == "compile" else function


def _methods(tree: ast.Module) -> dict[str, set[str]]:
    """Return which methods of patterns are called, by the name that they are called on."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            name = node.value.id if isinstance(node.value, ast.Name) else ""
            if name != "re":
                found.setdefault(name, set()).add(node.attr)
    return found


def _beginnings(parsed: Sequence[tuple[object, object]]) -> Iterator[str]:
    """Give what a pattern accepts, up to each of its parts."""
    before = [""]
    for item in parsed:
        inner = [each for part in _parts(item) for each in _beginnings(part)]
        yield from (head + each for head in before[:2] for each in inner)
        before = [head + each for head in before[:2] for each in _samples(item)][:4]
        yield from before


def _atoms(parsed: Sequence[tuple[object, object]]) -> Iterator[str]:
    """Give the runs of literals in a pattern, and a character of each class."""
    run = ""
    for item in parsed:
        if item[0] is sre.LITERAL:
            run += _samples(item)[0]
            continue
        if run:
            yield run
        run = ""
        parts = _parts(item)
        yield from (each for part in parts for each in _atoms(part))
        if not parts:
            yield from _samples(item)
    if run:
        yield run


def _parts(item: tuple[object, object]) -> list[Sequence[tuple[object, object]]]:
    operation, argument = item
    match operation:
        case sre.BRANCH:
            return list(argument[1])
        case sre.SUBPATTERN:
            return [argument[3]]
        case sre.MAX_REPEAT | sre.MIN_REPEAT | sre.POSSESSIVE_REPEAT:
            return [argument[2]]
        case sre.ATOMIC_GROUP:
            return [argument]
        case _:
            return []


def _samples(item: tuple[object, object]) -> list[str]:  # noqa: PLR0911 - one for each operation
    """Give a few texts that one part of a pattern accepts."""
    operation, argument = item
    match operation:
        case sre.LITERAL:
            return [chr(argument)]
        case sre.NOT_LITERAL:
            return [_other(lambda character: ord(character) != argument)]
        case sre.ANY:
            return ["a", " "]
        case sre.IN:
            fitting = [character for character in _CHARACTERS if _is_in(character, argument)]
            return [*fitting[:1], *fitting[-1:]]
        case sre.MAX_REPEAT | sre.MIN_REPEAT | sre.POSSESSIVE_REPEAT:
            return [each * max(argument[0], 1) for each in _sequence(argument[2])]
        case sre.BRANCH:
            return [each for part in argument[1] for each in _sequence(part)[:1]]
        case sre.SUBPATTERN | sre.ATOMIC_GROUP:
            return _sequence(_parts(item)[0])
        case _:
            return [""]


def _sequence(parsed: Sequence[tuple[object, object]]) -> list[str]:
    found = [""]
    for item in parsed:
        found = [head + each for head in found for each in _samples(item)][:4]
    return found


_CHARACTERS = "a0 \t\n\"'/\\:.,*?@$_-+=()<>[]{}A\x1f\x7f\xe9"
_CATEGORIES = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}


def _is_in(character: str, members: Sequence[tuple[object, object]]) -> bool:
    negated = members[0][0] is sre.NEGATE
    return negated != any(_is_member(character, member) for member in members)


def _is_member(character: str, member: tuple[object, object]) -> bool:
    match member:
        case (sre.LITERAL, number):
            return ord(character) == number
        case (sre.RANGE, (low, high)):
            return low <= ord(character) <= high
        case (sre.CATEGORY, category):
            return re.fullmatch(_CATEGORIES[category], character, re.ASCII) is not None
        case _:
            return False


def _other(fits: Callable[[str], bool]) -> str:
    return next(filter(fits, _CHARACTERS))
