"""Findings: a verdict on each question, and how they are printed. Pure."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Sequence
from functools import partial

import attrs

from stapsrv.errors import StapsrvError
from stapsrv.text import printable, shortened

_QUESTION_WIDTH = 30
# Of an answer, which may hold text of a server or a compiler.
_MAX_CHARACTERS = 1000


def _shortened(text: str) -> str:
    return shortened(text, _MAX_CHARACTERS)


class Verdict(enum.StrEnum):
    """The severity: with a warning clients are served, after a failure some are not or will not be."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@attrs.frozen
class Finding:
    """The answer to one question, in one sentence, and what to do about it, if anything."""

    verdict: Verdict
    question: str
    answer: str = attrs.field(converter=_shortened)
    remedy: str | None = None


ok = partial(Finding, Verdict.OK)
warning = partial(Finding, Verdict.WARNING)
failure = partial(Finding, Verdict.FAILURE)


def error(question: str, exc: StapsrvError) -> Finding:
    """Return the failure that an error describes."""
    answer = exc.problem if exc.where is None else f"{exc.where}: {exc.problem}"
    return failure(question, answer, exc.remedy)


def has_failed(findings: Iterable[Finding]) -> bool:
    """Whether there is a failure among them."""
    return any(finding.verdict is Verdict.FAILURE for finding in findings)


def lines_of(finding: Finding) -> list[str]:
    """Return a finding for a terminal, without control characters: a line, and one for the remedy."""
    mark = finding.verdict.value if finding.verdict is not Verdict.FAILURE else "FAILURE"
    lines = [f"{mark:8} {finding.question:{_QUESTION_WIDTH}} {printable(finding.answer)}".rstrip()]
    if finding.remedy is not None:
        lines.append(f"{'':9}{'':{_QUESTION_WIDTH}} -> {printable(finding.remedy)}")
    return lines


def summary_line(findings: Sequence[Finding]) -> str:
    """Return the last line: the number of each verdict."""
    fine, warnings, failures = (sum(each.verdict is verdict for each in findings) for verdict in Verdict)
    plurals = ("" if warnings == 1 else "s", "" if failures == 1 else "s")
    return f"{fine} ok, {warnings} warning{plurals[0]}, {failures} failure{plurals[1]}"


def document_of(findings: Sequence[Finding]) -> str:
    """Return a JSON document: ``findings``, an array of :class:`Finding` objects, and ``exit_status``."""
    found = [attrs.asdict(finding) for finding in findings]
    return json.dumps({"findings": found, "exit_status": int(has_failed(findings))}, indent=2) + "\n"
