"""Whether a request's answer is the same each time, as far as the request itself goes.

What is not known to be is not repeatable: the options and the words that are let through are listed, the
rest is not. Pure.

What a result shows of what it was made from, and whether it would be the same each time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence

from stapsrv.compile.cache.depfile import Build
from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.script_scan import host_access_reason
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.protocol.options import ParsedOptions, parse_options
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import ANSWER_DIRECTORY

_NUMBER = re.compile(rb"[0-9]+")
_WORD = re.compile(rb"[A-Za-z0-9_-]+")
_DEFINE = re.compile(rb"[A-Za-z_]\w*(=[\w.+-]*)?", re.ASCII)
_ANY = re.compile(rb".*", re.DOTALL)
_PASS = re.compile(rb"[45]")
_BARE_ARGUMENT = re.compile(rb"\$[0-9*$]")
_WORDS_OF_RC = re.compile(r"[A-Za-z0-9_=.,:+-]+")

# Options that send stap nowhere but to what is known of the request and the host, and the values that they
# may have; an option without a value has an empty one. Not here: what prints times (-v), lists (-l), stops
# before a module is made (-p1), looks at this host's processes (-x, -c, --ldd) or wants a new build.
_OPTIONS = {
    **dict.fromkeys(("e", "E", "privilege", "compatible"), _ANY),
    **dict.fromkeys(("g", "u", "w", "W", "P", "t", "F", "b", "unprivileged"), _ANY),
    **dict.fromkeys(("suppress-time-limits", "suppress-handler-errors", "skip-badvars"), _ANY),
    **dict.fromkeys(("prologue-searching", "color", "rlimit-as", "rlimit-cpu", "rlimit-nproc"), _ANY),
    **dict.fromkeys(("rlimit-stack", "rlimit-fsize"), _ANY),
    **dict.fromkeys(("s", "G", "T", "S", "m", "d"), re.compile(rb"[A-Za-z0-9_,.=+-]+")),
    "p": _PASS,
    "D": _DEFINE,
}


def request_uncacheable_reason(request: CompileRequest, outward: frozenset[str]) -> str | None:
    """Return why a request's answer may differ from time to time, in a word; None if it does not.

    Args:
        request: any.
        outward: by which names its tapsets lead to what is not known of the host
            (:func:`stapsrv.compile.cache.script_scan.names_reading_host_files`).
    """
    parsed = parse_options(request.arguments)
    if parsed.fault is not None:
        return "option"
    for name, value in parsed.options:
        if not _is_known(name, value or b"", request):
            return "option"
    # A text by -E goes beside a script, and does not stand for one.
    has_text = any(name == "e" for name, _value in parsed.options)
    named = {file.path for file in request.files}
    if not has_text and parsed.operands and parsed.operands[0] not in named | {b"-"}:
        return "file"
    texts = [*_texts(parsed), *(file.data for file in request.files)]
    arguments = parsed.operands if has_text else parsed.operands[1:]
    if _pastes(texts, arguments):
        return "argument"
    return next((why for text in texts if (why := host_access_reason(text, outward)) is not None), None)


def rc_is_known(text: str) -> bool:
    """Whether the options in stap's own ``rc`` file are all such as these."""
    lines = (line.partition("#")[0] for line in text.splitlines())
    words = [word for line in lines for word in line.split()]
    if not all(_WORDS_OF_RC.fullmatch(word) for word in words):
        return False
    parsed = parse_options([word.encode("ascii") for word in words])
    return (
        parsed.fault is None
        and not parsed.operands
        and all(name in _OPTIONS and name not in {"e", "E", "p"} for name, _value in parsed.options)
        and all(_OPTIONS[name].fullmatch(value or b"") for name, value in parsed.options if value is not None)
    )


def build_options_are_known(build: Iterable[str], define: Iterable[str]) -> bool:
    """Whether a server's ``-B`` and ``-D`` say what they say, and nothing that make or cpp would work out."""
    # A path for make, such as another compiler's, leads where nobody watches.
    return all(re.fullmatch(r"[\w=.,+-]*", text, re.ASCII) for text in build) and all(
        re.fullmatch(r"[\w=.,/+-]*", text, re.ASCII) for text in define
    )


def _is_known(name: str, value: bytes, request: CompileRequest) -> bool:
    if name == "r":
        return value == request.release.encode()
    if name == "I":
        return not value.startswith(b"/") and b".." not in value.split(b"/")
    pattern = _OPTIONS.get(name)
    return pattern is not None and pattern.fullmatch(value) is not None


def _texts(parsed: ParsedOptions) -> Iterator[bytes]:
    for name, value in parsed.options:
        if name in {"e", "E"}:
            yield value or b""
    yield from parsed.operands


def _pastes(texts: Sequence[bytes], arguments: Sequence[bytes]) -> bool:
    """Whether words of a script are put together of its arguments (``$1``; ``@1`` is always a string)."""
    if all(_NUMBER.fullmatch(argument) for argument in arguments):
        return False
    return any(_BARE_ARGUMENT.search(text) for text in texts)


_MODULE = re.compile(rf"{ANSWER_DIRECTORY}/([^/]+)\.ko")
# How the C that stap makes names a program: where it is probed, and where symbols are looked up in it.
_PROGRAM = re.compile(rb'\.(?:procname|path) ?= ?"(/[^"]*)"')
_INCLUDE = re.compile(rb"^[ \t]*(?:#|%:)[ \t]*include(?:_next)?([^\n]*)", re.MULTILINE)
_HEADER = re.compile(rb'[ \t]*[<"]([^<>"\\]+)[>"][ \t]*(?://.*|/\*.*\*/[ \t]*)?\r?')


def uncacheable_reason(job: CompileJob, result: CompileResult, outward: frozenset[str]) -> str | None:
    """Return why a result is not the same each time, as far as request and result show it."""
    if result.status != 0:
        return "failure"
    if result.limit_met is not None:
        return "limit"
    if module_name(result) is None:
        return "no module"
    return request_uncacheable_reason(job.request, outward)


def find_outside(result: CompileResult, build: Build, places: Sequence[WatchedPath]) -> str | None:
    """Return a file from elsewhere that a result was made from, or a program that it probes; or None."""
    named = [
        os.fsdecode(name)
        for file in result.files
        if file.path.endswith((".c", ".h"))
        for name in _PROGRAM.findall(file.data)
    ]
    within = [place.path for place in places if place.below]
    roots = {os.path.realpath(path) for path in within}
    inside: dict[str, bool] = {}
    for path in sorted({*build.paths, *named}):
        directory = os.path.dirname(path)  # noqa: PTH120 - a thousand of them
        if directory not in inside:
            # All that links below a place lead to is watched with it; with ".." who knows where one is.
            steady = "/../" not in path and _is_below(directory, within)
            inside[directory] = steady or _is_below(os.path.realpath(directory), roots)
        if not inside[directory]:
            return path
    return None


def _is_below(directory: str, places: Iterable[str]) -> bool:
    return any(directory == place or directory.startswith(f"{place}/") for place in places)


def includes_are_inside(result: CompileResult) -> bool:
    """Whether the C that stap made includes nothing but what is found in the kernel's and runtime's headers.

    The kernel is compiled without any other directories of headers (``-nostdinc``).
    """
    sources = [file.data for file in result.files if file.path.endswith("_src.c")]
    includes = [match for source in sources for match in _INCLUDE.findall(source)]
    return bool(sources) and all(
        (named := _HEADER.fullmatch(include)) is not None
        and not named[1].startswith(b"/")
        and b".." not in named[1].split(b"/")
        for include in includes
    )


def module_name(result: CompileResult) -> str | None:
    """Return the name of the one module that a result has."""
    names = [match[1] for file in result.files if (match := _MODULE.fullmatch(file.path)) is not None]
    return names[0] if len(names) == 1 else None
