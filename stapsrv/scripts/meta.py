"""Reads ``NAME.meta``, where SystemTap's own examples say how each is tried. Pure.

A line ``test_check: stap -p4 NAME.stp ARGUMENT`` is a command for a shell. Here none runs it: its words are
options and arguments, and a line that means something else to a shell is not understood.
"""

from __future__ import annotations

import re
import shlex

import attrs

from stapsrv.compile.protocol.options import parse_options

_CHECK = re.compile(r"^test_check:[ \t]*(.*)$", re.MULTILINE)
_SINGLE_QUOTED = re.compile(r"'[^']*'")
# One that is not closed goes on to the end, so that no text is searched twice.
_DOUBLE_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)
_EXPANDS = re.compile(r"[$`]")
_OPERATES = re.compile(r"[;&|<>(){}*?~#]")
_STAP = "stap"
# The test ends there, where a client would go on and run the module.
_COMPILE_ONLY = (("p", b"4"), ("p", b"5"))


@attrs.frozen
class CheckLine:
    """The options and arguments of a script, of one of its lines."""

    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


def parse_meta(text: str, script: str) -> CheckLine | None:
    """Return what the first line says that tries a script, by its file's name; None if no line does.

    Raises:
        ValueError: no line can be understood; the text says why of the first.
    """
    faults = []
    for line in _CHECK.findall(text):
        try:
            found = _parse_line(line, script)
        except ValueError as exc:
            faults.append(str(exc))
        else:
            if found is not None:
                return found
    if faults:
        raise ValueError(faults[0])
    return None


def _parse_line(line: str, script: str) -> CheckLine | None:
    unquoted = _SINGLE_QUOTED.sub("", line)
    if _EXPANDS.search(unquoted) or _OPERATES.search(_DOUBLE_QUOTED.sub("", unquoted)):
        raise ValueError(f"test_check needs a shell: {line}")
    try:
        words = shlex.split(line)
    except ValueError as exc:
        raise ValueError(f"test_check cannot be read: {exc}") from exc
    if words[:1] != [_STAP]:
        raise ValueError(f"test_check is no stap command: {line}")
    parsed = parse_options([word.encode("utf-8", "surrogateescape") for word in words[1:]])
    if parsed.fault is not None:
        raise ValueError(f"test_check cannot be read: {parsed.fault}")
    operands = [operand.decode("utf-8", "surrogateescape") for operand in parsed.operands]
    if not operands or operands[0].removeprefix("./") != script:
        return None
    options = [_typed(name, value) for name, value in parsed.options if (name, value) not in _COMPILE_ONLY]
    return CheckLine(tuple(options), tuple(operands[1:]))


def _typed(name: str, value: bytes | None) -> str:
    text = (value or b"").decode("utf-8", "surrogateescape")
    if len(name) == 1:
        return f"-{name}{text}"
    return f"--{name}" if value is None else f"--{name}={text}"
