"""What a result shows of what it was made from, and whether it would be the same each time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from stapsrv.compile.engine import CompileJob, CompileResult
from stapsrv.compile.kbuild import Build
from stapsrv.compile.repeatable import unrepeatable
from stapsrv.compile.trees import Place
from stapsrv.compile.wire import ANSWER_DIRECTORY

_MODULE = re.compile(rf"{ANSWER_DIRECTORY}/([^/]+)\.ko")
# How the C that stap makes names a program: where it is probed, and where symbols are looked up in it.
_PROGRAM = re.compile(rb'\.(?:procname|path) ?= ?"(/[^"]*)"')
_INCLUDE = re.compile(rb"^[ \t]*(?:#|%:)[ \t]*include(?:_next)?([^\n]*)", re.MULTILINE)
_HEADER = re.compile(rb'[ \t]*[<"]([^<>"\\]+)[>"][ \t]*(?://.*|/\*.*\*/[ \t]*)?\r?')


def why_not(job: CompileJob, result: CompileResult, outward: frozenset[str]) -> str | None:
    """Return why a result is not the same each time, as far as request and result show it."""
    if result.status != 0:
        return "failure"
    if result.limit_met is not None:
        return "limit"
    if module_name(result) is None:
        return "no module"
    return unrepeatable(job.request, outward)


def find_outside(result: CompileResult, build: Build, places: Sequence[Place]) -> str | None:
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
