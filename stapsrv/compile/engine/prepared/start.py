"""The beginning of a C source, compiled once for all modules that begin alike. Pure.

What stap and the kernel's build generate begins with the same few lines, which include most of what the
compiler reads. They become a precompiled header; a module's own source is compiled from the line after them.
What of the beginning differs from module to module is moved behind it: the module's name, and the numbers in
stap's own header. That is right only for macros that nothing in the beginning asks for; the preprocessor says
so when the header is made. The other conditions are those of gcc: the same options, and the global register
variables declared again.

Source: gcc's manual, "Using Precompiled Headers", and ``-dU``; seen with gcc 12.
"""

# It is part of the program that starts for every compile: see plan.

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from .plan import MODULE, NUMBER, VERSION, Build, Unfit

HEADER, COMPILED, OPTIONS = "start.h", "start.h.gch", "start.json"
ROLES = ("source", "symbols", "auxiliary", "description")
# In place of the module's name where the header is made, and where it is used.
_NAME = "stapsrv_prepared"

_COMMON = '#include "stap_common.h"\n'
_LAST_LINE = {
    "source": '#include "runtime.h"\n',
    "symbols": "#include <sym.h>\n",
    # Of auxiliary sources, those of tracepoints.
    "auxiliary": "#include <linux/stp_tracepoint.h>\n",
}
_DIRECTIVES = re.compile(r"(?:#(?:include <[^>\n]+>|define \w+)\n)*#include <[^>\n]+>\n")
_NUMBERS = re.compile(r"#ifndef (\w+)\n#define \1 [0-9]+\n#endif\n|^#define (\w+) [0-9]+\n", re.MULTILINE)
_PRAGMA = re.compile(r"^#pragma GCC .*\n", re.MULTILINE)
# A string that is not closed ends with its line: each letter is read once.
_TOKEN = re.compile(
    r"""
    "(?: \\[\s\S] | [^"\\\n] )* \\? "?
    | '(?: \\[\s\S] | [^'\\\n] )* \\? '?
    | [{}]
    | \bregister\b [^;{}]* ;?
    """,
    re.VERBOSE,
)
_REGISTER = re.compile(r'\b(\w+)(\s+(?:__)?asm(?:__)?\s*\(\s*"[^"]{0,40}"\s*\)\s*;)')
_DEFINITION = re.compile(r"^#define .*\n", re.MULTILINE)


class Start:
    """One precompiled beginning; the fields are those of the JSON."""

    def __init__(
        self,
        *,
        role: str,
        text: str,
        free: list[str],
        words: list[str],
        source: str,
        macros: list[list[str]],
        after: str,
        registers: list[str],
        dependencies: list[str],
    ) -> None:
        self.role = role
        self.text = text
        # The macros with numbers that nothing in it asks for.
        self.free = free
        # The compiler's command without the files, the source as it is named there, the shell command that
        # follows it, and the macros with the module's name that are left out of it.
        self.words = words
        self.source = source
        self.after = after
        self.macros = macros
        self.registers = registers
        # What the compiler read for it.
        self.dependencies = dependencies

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps({"version": VERSION, **vars(self)}, sort_keys=True, indent=0).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Start:
        """Return that of some JSON; raises Unfit if it is none."""
        try:
            fields = json.loads(data)
            if fields.pop("version") != VERSION:
                raise Unfit("damaged")
            start = cls(**fields)
            lists = (start.free, start.words, start.registers, start.dependencies, *start.macros)
            texts = [
                start.role,
                start.text,
                start.source,
                start.after,
                *(text for texts in lists for text in texts),
            ]
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as exc:
            raise Unfit("damaged") from exc
        if start.role not in ROLES or not all(isinstance(text, str) for text in texts):
            raise Unfit("damaged")
        return start

    def rest(self, build: Build, text: str, common: str, number: int = 0) -> str | None:
        """Return what remains to be compiled of a source; None if it does not begin with this start."""
        divided = divide(self.role, text, common, self.free)
        if divided is None or divided[0] != self.text:
            return None
        start, moved, rest = divided
        lines = [
            f"#undef {name}\n#define {name} {build.fill(value, number)}\n" for name, value in self.macros
        ]
        # gcc forgets both with a precompiled header. A variable that it knows already would not count.
        lines += [_REGISTER.sub(r"stapsrv_\1\2", declared) + "\n" for declared in self.registers]
        lines += _PRAGMA.findall(start)
        line = text.count("\n", 0, len(text) - len(rest)) + 1
        return "".join(lines) + moved + f'#line {line} "{build.fill(self.source, number)}"\n{rest}'

    def command(self, build: Build, directory: str, source: str, number: int = 0) -> str:
        """Return the shell command that compiles a rest in ``source`` with the header in ``directory``."""
        target = build.path(self.role, number)
        above, _, name = target.rpartition("/")
        words = [
            *self.words,
            "-Winvalid-pch",
            "-iquote",
            build.directory,
            "-include",
            f"{directory}/{HEADER}",
        ]
        words += [f"-Wp,-MMD,{above}/.{name}.d", "-c", "-o", target, source]
        return f"{shell_line(words)} ; {build.fill(self.after, number)}"

    def header_command(self, directory: str) -> list[str]:
        """Return the command that makes the header in ``directory``."""
        header = f"{directory}/{HEADER}"
        rule = f"-Wp,-MMD,{directory}/start.d"
        return [*self.words, rule, "-x", "c-header", "-o", f"{directory}/{COMPILED}", header]

    def question_command(self, directory: str) -> list[str]:
        """Return the command that prints the header with all macros that are asked for in it."""
        # A macro that is missing for a condition is a warning.
        return [*self.words, "-w", "-E", "-dU", "-x", "c-header", f"{directory}/{HEADER}"]


def source_path(role: str, build: Build, number: int = 0) -> str:
    """Return the path of the source that becomes the object of a role."""
    return build.path(role, number).removesuffix("o") + "c"


def divide(role: str, text: str, common: str, free: Sequence[str]) -> tuple[str, str, str] | None:
    """Return the beginning of a source, what moves behind it, and the rest; None if it begins otherwise.

    ``common`` is the text of stap's own header, whose numbers move if they are of ``free`` macros.
    """
    if role == "description":
        found = _DIRECTIVES.match(text)
        return None if found is None else (found[0], "", text[found.end() :])
    begin, last, rest = text.partition(_LAST_LINE[role])
    start = begin + last
    if not last or len(begin) > 1 << 16:
        return None
    if role != "source":
        return start, "", rest
    if start.count(_COMMON) != 1:
        return None
    moved = []

    def move(found: re.Match[str]) -> str:
        if (found[1] or found[2]) not in free:
            return found[0]
        moved.append(found[0])
        return ""

    # stap ends it without a line feed.
    kept = _NUMBERS.sub(move, common).rstrip("\n") + "\n"
    return start.replace(_COMMON, kept), "".join(moved), rest


def numbers(common: str) -> list[str]:
    """Return the macros with numbers in stap's own header."""
    return sorted({first or second for first, second in _NUMBERS.findall(common)})


def unconditional(common: str) -> str:
    """Return stap's own header without its questions whether a number is defined already."""
    return _NUMBERS.sub(lambda found: "".join(_DEFINITION.findall(found[0])), common)


def begin_start(
    role: str, words: Sequence[str], after: str, text: str, free: list[str]
) -> tuple[Start, list[str]]:
    """Return a start for a compiler's command, without a header yet, and the files that come before it.

    ``words`` are of the plan: names are left open. Raises Unfit if the command is of another kind.
    """
    kept, macros, included = [], [], []
    source, rest = "", list(words)
    while rest:
        word = rest.pop(0)
        if word == "-include" and rest:
            included.append(rest.pop(0))
        elif word in {"-o", "-c"} or word.startswith("-Wp,-MMD,"):
            if word == "-o":
                rest = rest[1:]
        elif word.startswith("-D") and MODULE in word:
            name, _, value = word[2:].partition("=")
            macros.append([name, value])
            kept.append(word.replace(MODULE, _NAME).replace(NUMBER, "0"))
        elif rest:
            kept.append(word)
        else:
            source = word
    if any("\0" in word for word in kept):
        raise Unfit("another compiler command")
    start = Start(
        role=role,
        text=text,
        free=free,
        words=kept,
        source=source,
        macros=macros,
        after=after,
        registers=[],
        dependencies=[],
    )
    return start, included


def asked(names: Sequence[str], printed: str) -> list[str]:
    """Return those of some macros that a header asks for, by what the preprocessor printed of it."""
    words = set(re.findall(r"\w+", printed))
    return [name for name in names if name in words]


def uses_name(printed: str) -> bool:
    """Whether the code of a header has the module's name in it."""
    return any(_NAME in line for line in printed.split("\n") if not line.startswith("#"))


def global_registers(printed: str) -> list[str]:
    """Return the declarations of global register variables in preprocessed code."""
    depth, found = 0, []
    code = re.sub(r"^#.*\n", "", printed, flags=re.MULTILINE)
    for token in _TOKEN.findall(code):
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth == 0 and token.startswith("register") and _REGISTER.search(token):
            found.append(" ".join(token.split()))
    return found


def shell_line(words: Sequence[str]) -> str:
    """Return words as a shell reads them."""
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
