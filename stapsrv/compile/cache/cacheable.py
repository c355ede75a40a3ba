"""Decides whether a result may be cached: it has to be the same each time, as far as request and result show.

The request must hold nothing but options and words that are known to be repeatable; the lists name what is
allowed. The result must show that nothing was read but what is watched: in the compiler's own lists of files,
and in the probe points of the C that stap made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence

from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.script_scan import host_access_reason
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.protocol.options import ParsedOptions, parse_options
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import RESPONSE_DIRECTORY

_NUMBER = re.compile(rb"[0-9]+")
_DEFINE = re.compile(rb"[A-Za-z_]\w*(=[\w.+-]*)?", re.ASCII)
_ANY = re.compile(rb".*", re.DOTALL)
_PASS = re.compile(rb"[45]")
_COMPILER_MESSAGE = re.compile(rb"(?m): (warning|note|error):|^In f(unction|ile included)|^\S+:\d+:")
_BARE_ARGUMENT = re.compile(rb"\$[0-9*$]")
_RC_WORD = re.compile(r"[A-Za-z0-9_=.,:+-]+")

# Options that make stap read nothing but the request and the watched paths, and the values that they may
# have; an option without a value has an empty one. Not here: what prints times (-v), lists (-l), stops before
# a module is made (-p1), reads this host's processes (-x, -c, --ldd) or wants a new build.
_OPTIONS = {
    **dict.fromkeys(("e", "E", "privilege", "compatible"), _ANY),
    **dict.fromkeys(("g", "u", "w", "W", "P", "t", "F", "b", "unprivileged"), _ANY),
    **dict.fromkeys(("suppress-time-limits", "suppress-handler-errors", "skip-badvars"), _ANY),
    **dict.fromkeys(("prologue-searching", "color", "rlimit-as", "rlimit-cpu", "rlimit-nproc"), _ANY),
    **dict.fromkeys(("rlimit-stack", "rlimit-fsize"), _ANY),
    **dict.fromkeys(("s", "G", "T", "S", "m"), re.compile(rb"[A-Za-z0-9_,.=+-]+")),
    # Without debugging information stap 4.8 reads the symbols of the kernel that runs, for any release.
    "d": re.compile(rb"(?!kernel\Z)[A-Za-z0-9_,.=+-]+"),
    "p": _PASS,
    "D": _DEFINE,
}

# What is scanned of a request, which takes a second at worst, and of the C that stap made of it.
_MOST_SCRIPT_BYTES = 256 * 1024
_MOST_SOURCE_BYTES = 16 * 1024 * 1024

_SOURCES = (".c", ".h")
_MODULE = re.compile(rf"{RESPONSE_DIRECTORY}/[^/]+\.ko")
# How the C that stap makes names a program: where it is probed, and where symbols are looked up in it.
_PROGRAM = re.compile(rb'\.(?:procname|path) ?= ?"(/[^"]*)"')
_PATH_MAX = 4096  # Linux's own


def uncacheable_reason(job: CompileJob, result: CompileResult, host_names: frozenset[str]) -> str | None:
    """Return why a result may differ from time to time, in a word, as far as request and result show it.

    ``host_names`` are those of :func:`stapsrv.compile.cache.script_scan.names_reading_host_files`.
    """
    if result.status != 0:
        return "failure"
    if result.limit_met is not None:
        return "limit"
    if sum(_MODULE.fullmatch(file.path) is not None for file in result.files) != 1:
        return "no module"
    if sum(len(file.data) for file in result.files if file.path.endswith(_SOURCES)) > _MOST_SOURCE_BYTES:
        return "size"
    return request_uncacheable_reason(job.request, job.options, host_names)


def request_uncacheable_reason(
    request: CompileRequest, parsed: ParsedOptions, host_names: frozenset[str]
) -> str | None:
    """Return why the result of a request may differ from time to time, in a word; None if it does not."""
    if parsed.fault is not None:
        return "option"
    if not all(_is_repeatable(name, value or b"", request) for name, value in parsed.options):
        return "option"
    # The text of -E goes beside a script, and does not stand for one.
    has_text = any(name == "e" for name, _value in parsed.options)
    named = {file.path for file in request.files}
    if not has_text and parsed.operands and parsed.operands[0] not in named | {b"-"}:
        return "file"
    # The first operand without it is the name of a file, whose words mean nothing to stap.
    arguments = parsed.operands if has_text else parsed.operands[1:]
    texts = [value or b"" for name, value in parsed.options if name in {"e", "E"}]
    texts += [*arguments, *(file.data for file in request.files)]
    if sum(map(len, texts)) > _MOST_SCRIPT_BYTES:
        return "size"
    # A script makes words of its arguments by $1, but strings by @1; a number sends stap nowhere.
    if not all(map(_NUMBER.fullmatch, arguments)) and any(map(_BARE_ARGUMENT.search, texts)):
        return "argument"
    return next((why for text in texts if (why := host_access_reason(text, host_names)) is not None), None)


def has_compiler_messages(result: CompileResult) -> bool:
    """Whether a result may hold messages of the compiler, whose quotes go by the locale's character set."""
    text = result.stdout + result.stderr
    return not text.isascii() or _COMPILER_MESSAGE.search(text) is not None


def is_rc_cacheable(text: str) -> bool:
    """Whether results may depend on all the options in stap's own ``rc`` file."""
    lines = (line.partition("#")[0] for line in text.splitlines())
    words = [word for line in lines for word in line.split()]
    if not all(_RC_WORD.fullmatch(word) for word in words):
        return False
    parsed = parse_options([word.encode("ascii") for word in words])
    return (
        parsed.fault is None
        and not parsed.operands
        and all(name in _OPTIONS and name not in {"e", "E", "p"} for name, _value in parsed.options)
        and all(_OPTIONS[name].fullmatch(value or b"") for name, value in parsed.options if value is not None)
    )


def are_build_options_cacheable(build: Iterable[str], define: Iterable[str]) -> bool:
    """Whether a server's ``-B`` and ``-D`` are plain values that neither make nor cpp would expand."""
    # A path for make, such as another compiler's, leads to files that are not watched.
    return all(re.fullmatch(r"[\w=.,+-]*", text, re.ASCII) for text in build) and all(
        re.fullmatch(r"[\w=.,/+-]*", text, re.ASCII) for text in define
    )


def find_unwatched_file(
    result: CompileResult, dependencies: Collection[str], paths: Sequence[WatchedPath]
) -> str | None:
    """Return a file that the compiler read, or a program that is probed, and that is not watched; or None."""
    named = [
        os.fsdecode(name)
        for file in result.files
        if file.path.endswith(_SOURCES)
        for name in _PROGRAM.findall(file.data)
    ]
    roots = [path.path for path in paths if path.recursive]
    real_roots = {os.path.realpath(path) for path in roots}
    inside: dict[str, bool] = {}
    for path in sorted({*dependencies, *named}):
        if "\0" in path or len(path) > _PATH_MAX:
            # No file has it, so somebody made it up.
            return path[:_PATH_MAX]
        directory = os.path.dirname(path)  # noqa: PTH120 - a thousand of them
        if directory not in inside:
            # All that links below a root lead to is watched with it; after ".." only the real path tells.
            is_below = "/../" not in path and _is_below(directory, roots)
            inside[directory] = is_below or _is_below(os.path.realpath(directory), real_roots)
        if not inside[directory]:
            return path
    return None


def _is_repeatable(name: str, value: bytes, request: CompileRequest) -> bool:
    if name == "r":
        return value == request.release.encode()
    if name == "I":
        return not value.startswith(b"/") and b".." not in value.split(b"/")
    pattern = _OPTIONS.get(name)
    return pattern is not None and pattern.fullmatch(value) is not None


def _is_below(directory: str, roots: Iterable[str]) -> bool:
    return any(directory == root or directory.startswith(f"{root}/") for root in roots)
