"""Finds what in a script, or in the tapsets behind it, may make stap read files of the server's host.

stap reads a user's program while it translates a probe in it, a user's header for a cast. Whether it found
one does not show in what it made: an optional probe leaves nothing behind where its program is missing. So
the text is read for the words that send stap there. Reading is coarse on purpose: a word that could send it
there counts, whether or not it does.

Source of the grammar: stapprobes(3stap), stap(1); seen in SystemTap 4.8.
"""

from __future__ import annotations

import errno
import fnmatch
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from stapsrv.compile.cache.fingerprint import WatchedPath

# Unread: what has no end. stap may read on where this scan does not.
_TOKEN = re.compile(
    r"""(?P<code>%\{.*?%\})
      | (?P<blank>\s+|//[^\n]*|/\*.*?\*/|(?<![$@])\#[^\n]*)
      | (?P<text>"(?:\\.|[^"\\\n])*")
      | (?P<unread>%\{.*|/\*.*|"(?:\\.|[^"\\\n])*)
      | (?P<word>[@$]?[A-Za-z_][A-Za-z_0-9]*)
      | (?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)

# Probe points with an argument that names a program, or a file that a program reads.
_PROGRAMS = frozenset({"process", "java", "python2", "python3"})
# Where the module that a type or a variable is looked up in stands among the arguments.
_CASTS = {"@cast": 2, "@var": 1}
# The kernel, a module by its name, or a header of the kernel's.
_KERNEL_MODULE = re.compile(r"[\w*?-]*|kernel(<\w[\w./+-]*>)+", re.ASCII)
# A character by its number.
_ESCAPE = re.compile(r"\\[0-7xX]")
# Of stap itself; every other word like these is a macro, which stands for any words.
_OPERATORS = frozenset(
    {"@cast", "@const", "@defined", "@define", "@entry", "@kderef", "@kregister", "@perf", "@probewrite"}
    | {"@uderef", "@uregister", "@var"}
    | {"@avg", "@count", "@hist_linear", "@hist_log", "@max", "@min", "@sum", "@variance"}
)
_KEYWORDS = frozenset({"function", "probe", "global", "private", "@define"})
# Where a probe point begins, and where one ends.
_BEFORE_POINT = frozenset({"probe", ",", "{", "!", "?", "=", "+="})
_AFTER_POINT = frozenset({"{", ",", "!", "?", "="})

# Of different words with wildcards in a script, and of each one's length. Scripts have a few.
_MOST_WILDCARDS = 100
_WILDCARD_CHARACTERS = 200

# Of all tapsets; SystemTap's own have 4 MB.
_MOST_TAPSET_BYTES = 64 * 1024 * 1024

# A tapset file without any of this sends stap nowhere by itself.
_HOST_WORDS = re.compile(rb"\bprocess\b|java|python[23]|@cast|@var|@define|@enumname|\bmodule\b")
_WORD = re.compile(rb"[A-Za-z_][A-Za-z_0-9]*")


def names_reading_host_files(texts: Iterable[bytes]) -> frozenset[str]:
    """Return what tapset files define that may make stap read host files, directly or through others."""
    files = _TapsetFiles(texts)
    found = files.direct_names()
    waiting = list(found)
    while waiting:
        new = files.names_defined_with(waiting.pop()) - found
        found |= new
        waiting += new
    return frozenset(found)


def host_access_reason(text: bytes, host_names: frozenset[str]) -> str | None:
    """Return, in a word, what in a script or an argument of one may make stap read host files; or None."""
    if b"%{" in text:
        return "code"
    script = _Definition(_tokens(text))
    return "code" if "const" in script.words else script.reason(host_names)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


class _Definition:
    """A definition or a probe of a tapset, or a whole script.

    All looks at it take linear time: a client's file may be large, and need not be a script.
    """

    def __init__(self, tokens: Iterable[_Token]) -> None:
        self.tokens = tuple(tokens)
        # The names in it; a macro's without its "@".
        self.words = frozenset(token.text.lstrip("@") for token in self.tokens if token.kind == "word")
        self._has_macro = any(map(_is_macro, self.tokens))
        # How many of the tokens before each one are host paths.
        self._host_paths = [0, *itertools.accumulate(map(_is_host_path, self.tokens))]
        # Where what each parenthesis or bracket opens ends.
        self._ends: dict[int, int] = {}
        opened = []
        for number, token in enumerate(self.tokens):
            if token.text in {"(", "["}:
                opened.append(number)
            elif token.text in {")", "]"} and opened:
                self._ends[opened.pop()] = number

    def reason(self, host_names: frozenset[str]) -> str | None:
        """Return, in a word, what in it may make stap read host files; or None."""
        numbers = range(len(self.tokens))
        if any(token.kind == "unread" for token in self.tokens):
            return "unread"
        if host_names & self.words or any(map(self._names_program, numbers)):
            return "program"
        # The words of a macro, and those that it is given, may come to stand anywhere.
        if "define" in self.words and self._host_paths[-1]:
            return "header"
        if any(self._casts_outside_kernel(number) or self._passes_host_path(number) for number in numbers):
            return "header"
        return "program" if _matches_any(set(self._wildcards()), host_names | _PROGRAMS) else None

    def _names_program(self, number: int) -> bool:
        """Whether a component of a probe point here names a program, or a module by its path."""
        token = self.tokens[number]
        if token.kind != "word":
            return False
        following = self._text(number + 1)
        if token.text == "process":
            # Without an argument it is any process, and no program is read.
            return following != "." and not (self._text(number - 1) == "." and following in _AFTER_POINT)
        if token.text in _PROGRAMS:
            return True
        if token.text != "module":
            return False
        if following != "(":
            return self._has_macro  # its argument may stand in one
        arguments = self._arguments(number + 1)
        return arguments is None or any(
            part.kind != "text" or "/" in part.text or "\\" in part.text for part in arguments[0] or [token]
        )

    def _passes_host_path(self, number: int) -> bool:
        if not _is_macro(self.tokens[number]) or self._text(number + 1) != "(":
            return False
        end = self._ends.get(number + 1, -1)
        return self._text(end) != ")" or self._host_paths[end] > self._host_paths[number + 1]

    def _casts_outside_kernel(self, number: int) -> bool:
        """Whether a cast or a variable here is looked up in a user's program or header."""
        position = _CASTS.get(self.tokens[number].text)
        if position is None:
            return False
        arguments = self._arguments(number + 1)
        if arguments is None:
            return True
        if len(arguments) <= position:
            return False
        if any(token.kind != "text" or "\\" in token.text for token in arguments[position]):
            return True
        modules = "".join(token.text[1:-1] for token in arguments[position])
        return any(
            _KERNEL_MODULE.fullmatch(module) is None or ".." in re.split("[</>]", module)
            for module in modules.split(":")
        )

    def _text(self, number: int) -> str:
        return self.tokens[number].text if 0 <= number < len(self.tokens) else ""

    def _arguments(self, start: int) -> list[list[_Token]] | None:
        """Return the arguments in the parentheses that open here, of inner ones only the opening; or None."""
        end = self._ends.get(start, -1)
        if self._text(start) != "(" or self._text(end) != ")":
            return None
        arguments: list[list[_Token]] = [[]]
        number = start + 1
        while number < end:
            token = self.tokens[number]
            if token.text == ",":
                arguments.append([])
            else:
                arguments[-1].append(token)
            number = self._ends.get(number, number) + 1
        return arguments

    def _wildcards(self) -> Iterator[str]:
        """Return the words with wildcards that could begin a probe point or stand before an argument."""
        number = 0
        while number < len(self.tokens):
            first = number
            while (
                number + 1 < len(self.tokens)
                and self.tokens[number].end == self.tokens[number + 1].start
                and (_is_word_part(self.tokens[number]) and _is_word_part(self.tokens[number + 1]))
            ):
                number += 1
            word = "".join(token.text for token in self.tokens[first : number + 1])
            number += 1
            if not ({"*", "?"} & set(word)) or not _is_word_part(self.tokens[first]):
                continue
            begins = first == 0 or self._text(first - 1) in _BEFORE_POINT
            is_operator = word in {"*", "?"} and not begins
            if (begins or self._text(number) == "(") and not is_operator:
                yield word


def _matches_any(wildcards: Collection[str], names: Collection[str]) -> bool:
    """Whether words with wildcards may mean one of some names; too many words, or too long ones, may."""
    # Each costs the making of an expression, and a look at every name.
    if len(wildcards) > _MOST_WILDCARDS or any(len(word) > _WILDCARD_CHARACTERS for word in wildcards):
        return True
    return any(fnmatch.fnmatchcase(name, word) for word in wildcards for name in names)


def _tokens(text: bytes) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text.decode("latin-1")):
        if match.lastgroup != "blank":
            yield _Token(str(match.lastgroup), match.group(), match.start(), match.end())


def _definitions(text: bytes) -> Iterator[_Definition]:
    """Split a tapset file into what it defines, which begins outside of all braces."""
    tokens: list[_Token] = []
    depth = 0
    after_dot = False
    for token in _tokens(text):
        if depth == 0 and token.text in _KEYWORDS and not after_dot:
            yield _Definition(tokens)
            tokens = []
        depth += (token.text == "{") - (token.text == "}")
        after_dot = token.text == "."
        tokens.append(token)
    yield _Definition(tokens)


class _TapsetFiles:
    """The definitions in tapset files; each file is split when it is needed, and once: most never are."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._texts = list(texts)
        # By word, the files that it stands in, and what the definitions that it stands in define.
        self._mentions: dict[bytes, list[int]] = {}
        self._defined_with: dict[str, list[set[str]]] = {}
        self._split: set[int] = set()
        for number, text in enumerate(self._texts):
            for word in set(_WORD.findall(text)):
                self._mentions.setdefault(word, []).append(number)

    def direct_names(self) -> set[str]:
        """Return the names of definitions that by themselves may make stap read host files."""
        found: set[str] = set()
        for number, text in enumerate(self._texts):
            if _HOST_WORDS.search(text):
                for definition, names in self._split_file(number):
                    found |= names if definition.reason(frozenset()) else set()
        return found

    def names_defined_with(self, name: str) -> set[str]:
        """Return the names of all definitions that a name stands in."""
        for number in self._mentions.get(name.lstrip("@$").encode("latin-1"), ()):
            if number not in self._split:
                self._split_file(number)
        return set().union(*self._defined_with.get(name, ()))

    def _split_file(self, number: int) -> list[tuple[_Definition, set[str]]]:
        self._split.add(number)
        found = [(each, _defined_names(each)) for each in _definitions(self._texts[number])]
        for definition, names in found:
            for word in definition.words if names else ():
                self._defined_with.setdefault(word, []).append(names)
        return found


def _defined_names(definition: _Definition) -> set[str]:
    """Return the names that a definition defines; of a probe's alias, its first component."""
    words = [token.text for token in definition.tokens if token.kind == "word"]
    if not words or words[0] not in _KEYWORDS:
        return set()
    return set(words[1:] if words[0] in {"global", "private"} else words[1:2]) - _KEYWORDS


def _is_macro(token: _Token) -> bool:
    return token.kind == "word" and token.text.startswith("@") and token.text not in _OPERATORS


def _is_host_path(token: _Token) -> bool:
    """Whether a string, or an argument of the script, could send a cast to files outside of the kernel."""
    if token.kind != "text":
        return token.text == "@"
    hidden = _ESCAPE.search(token.text) is not None
    return hidden or any(part[:1] in {"/", "<"} for part in token.text[1:-1].split(":"))


def _is_word_part(token: _Token) -> bool:
    return (
        token.kind == "word" or token.text in {"*", "?"} or (token.kind == "other" and token.text.isalnum())
    )


def scan_tapsets(paths: Iterable[WatchedPath]) -> frozenset[str]:
    """Return the names in the tapsets below some paths that may make stap read host files.

    Raises:
        OSError: they are too large, or cannot be read now, for want of a descriptor for example.
    """
    texts = []
    left = _MOST_TAPSET_BYTES
    for path in (file for top in paths for file in _tapset_files(top.path)):
        try:
            with path.open("rb") as stream:
                texts.append(stream.read(left + 1))
        except OSError as exc:
            _raise_unless_unreadable(exc)
            continue
        left -= len(texts[-1])
        if left < 0:
            raise OSError(errno.EFBIG, f"tapsets of more than {_MOST_TAPSET_BYTES} bytes")
    return names_reading_host_files(texts)


def _raise_unless_unreadable(exc: OSError) -> None:
    # What is not there for us is not there for stap either.
    if exc.errno not in {errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
        raise exc


def _tapset_files(top: str) -> Iterator[Path]:
    """Yield the tapset files below a directory; links to directories are followed, as stap does."""
    seen: set[tuple[int, int]] = set()
    for directory, below, names in os.walk(top, onerror=_raise_unless_unreadable, followlinks=True):
        status = Path(directory).stat()
        if (status.st_dev, status.st_ino) in seen:
            below.clear()  # a link in a circle, or another one to the same place
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(directory, name) for name in names if name.endswith((".stp", ".stpm")))
