"""The results of scripts by release, and the differences from the last time. Pure."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import attrs

from stapsrv.text import error_line, printable_bytes

_WARNING = re.compile(rb"(?i)\bwarning:")
_MAX_MESSAGE = 300


class Verdict(enum.StrEnum):
    """The outcome of a script; the values are words for people and for programs."""

    OK = "ok"
    WARNS = "warns"
    FAILS = "fails"
    EXPECTED = "expected failure"
    UNEXPECTED = "compiles unexpectedly"
    UNTRIED = "not tried"  # for a reason that says nothing of the kernel
    LEFT_OUT = "left out"


AS_EXPECTED = frozenset({Verdict.OK, Verdict.WARNS, Verdict.EXPECTED, Verdict.LEFT_OUT})
_COMPILES = frozenset({Verdict.OK, Verdict.WARNS, Verdict.UNEXPECTED})
_FAILS = frozenset({Verdict.FAILS, Verdict.EXPECTED})


class Cell(NamedTuple):
    """The place of a result in the matrix."""

    collection: str
    script: str
    release: str


@attrs.frozen
class Inputs:
    """Digests of what a result was made of, in hex; empty where that is not known."""

    request: str = ""
    toolchain: str = ""
    environment: str = ""

    @property
    def are_known(self) -> bool:
        """Whether equal inputs mean an equal result."""
        return bool(self.environment)

    def changed_since(self, before: Inputs) -> str:
        """Return in words what is different."""
        if not self.are_known or not before.are_known:
            return "what changed is not known"
        changes = []
        if self.request != before.request:
            changes.append("the script")
        if self.toolchain != before.toolchain:
            changes.append("the kernel's headers, the compiler or the runtime")
        elif self.environment != before.environment:
            changes.append("tapsets or settings")
        return f"{' and '.join(changes)} changed" if changes else "nothing that is watched changed"


@attrs.frozen(kw_only=True)
class Result:
    """The result of one script for one release."""

    cell: Cell
    verdict: Verdict
    message: str = ""  # the first error, or warning
    seconds: float = 0.0
    inputs: Inputs = Inputs()
    at: float = 0.0  # seconds since 1970
    cached: bool = False  # it was known already
    uncacheable: str | None = None  # why a client's first request is compiled again, in a word

    @property
    def is_as_expected(self) -> bool:
        """Whether nobody has to act."""
        return self.verdict in AS_EXPECTED


@attrs.frozen
class Difference:
    """A result that is another than the last, or than that of another release, in words."""

    cell: Cell
    text: str


def judge(*, status: int, stderr: bytes, limit: str | None, is_to_fail: bool) -> tuple[Verdict, str]:
    """Return the verdict on a compile that has ended, and the line that says why."""
    if limit is not None or status != 0:
        message = limit or error_line(stderr, limit=_MAX_MESSAGE)
        return (Verdict.EXPECTED if is_to_fail else Verdict.FAILS), message
    if is_to_fail:
        return Verdict.UNEXPECTED, "it compiles, and is stated to fail"
    warning = next((line for line in stderr.splitlines() if _WARNING.search(line)), None)
    if warning is None:
        return Verdict.OK, ""
    return Verdict.WARNS, printable_bytes(warning.strip(), limit=_MAX_MESSAGE)


def release_order(release: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts releases by their numbers: 6.1.0-9 before 6.1.0-10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", release)
    return tuple((1, int(part)) if part.isdigit() else (0, part) for part in parts)


def differences(before: Mapping[Cell, Result], now: Sequence[Result]) -> list[Difference]:
    """Return what is worse than before or than for an earlier release, then what is better."""
    known = {**before, **{result.cell: result for result in now}}
    worse, better = [], []
    for result in now:
        last = before.get(result.cell)
        if result.verdict is Verdict.FAILS and (last is None or last.verdict is not Verdict.FAILS):
            worse.append(Difference(result.cell, _explain_failure(result, last, known)))
        elif last is None or last.verdict is result.verdict:
            continue
        elif result.verdict in _COMPILES and last.verdict in _FAILS:
            changed = result.inputs.changed_since(last.inputs)
            better.append(
                Difference(result.cell, f"failed before, compiles on {result.cell.release}: {changed}")
            )
        elif not result.is_as_expected:
            said = f"{result.verdict} on {result.cell.release}, was {last.verdict}: {result.message}"
            worse.append(Difference(result.cell, said))
    return worse + better


def _explain_failure(result: Result, last: Result | None, known: Mapping[Cell, Result]) -> str:
    release = result.cell.release
    if last is not None and last.verdict in _COMPILES:
        changed = result.inputs.changed_since(last.inputs)
        return f"worked before, fails on {release} ({changed}): {result.message}"
    works = working_release(result.cell, known)
    if works is not None:
        return f"worked on {works}, fails on {release}: {result.message}"
    return f"fails on {release}: {result.message}"


def working_release(cell: Cell, known: Mapping[Cell, Result]) -> str | None:
    """Return the release nearest to that of a cell for which its script compiles, an earlier one first."""
    works = sorted(
        (
            other.release
            for other, result in known.items()
            if other[:2] == cell[:2] and other.release != cell.release and result.verdict in _COMPILES
        ),
        key=release_order,
    )
    earlier = [name for name in works if release_order(name) < release_order(cell.release)]
    return next(iter([*earlier[-1:], *works]), None)


def count_verdicts(results: Iterable[Result]) -> dict[str, dict[str, int]]:
    """Return how many scripts have each verdict, by release; the oldest first, verdicts in their order."""
    counts = Counter((result.cell.release, result.verdict) for result in results)
    releases = sorted({release for release, _ in counts}, key=release_order)
    return {
        release: {str(verdict): count for verdict in Verdict if (count := counts[release, verdict])}
        for release in releases
    }
