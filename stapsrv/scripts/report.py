"""A check's results for people at a terminal and for programs: text, JSON and JUnit's XML. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

import attrs

from stapsrv.scripts.matrix import Cell, Difference, Result, Verdict, count_verdicts, release_order
from stapsrv.text import counted, printable, tally

_GAP = "  "
_XML_CONTROL = {number: "?" for number in range(32) if chr(number) not in "\t\n\r"}


@attrs.frozen
class Report:
    """All results of a check, and the differences from the last one."""

    results: tuple[Result, ...]
    differences: tuple[Difference, ...] = ()

    @property
    def exit_status(self) -> int:
        """0: all is as expected; 1: something is not; 2: there was nothing to check."""
        if not self.results:
            return 2
        return 0 if all(result.is_as_expected for result in self.results) else 1

    @property
    def releases(self) -> list[str]:
        """The releases, the oldest first."""
        return sorted({result.cell.release for result in self.results}, key=release_order)

    def rows(self) -> dict[tuple[str, str], dict[str, Result]]:
        """Return the results by script and release, in the order of the scripts' names."""
        rows: dict[tuple[str, str], dict[str, Result]] = {}
        for result in sorted(self.results, key=lambda each: each.cell):
            rows.setdefault(result.cell[:2], {})[result.cell.release] = result
        return rows


def text_lines(report: Report) -> list[str]:
    """Return the differences, the matrix, what is not as expected, and a sum for each release."""
    lines = [f"{each.cell.script}: {each.text}" for each in report.differences]
    if lines:
        lines.append("")
    lines += _matrix(report)
    trouble = [result for result in report.results if not result.is_as_expected]
    if trouble:
        lines.append("")
        lines += [
            f"{each.cell.script} on {each.cell.release}: {each.verdict}: {each.message}" for each in trouble
        ]
    lines.append("")
    for release, counts in count_verdicts(report.results).items():
        lines.append(f"{release}: {counted(sum(counts.values()), 'script')}: {tally(counts)}")
    return [printable(line) for line in lines]


def _matrix(report: Report) -> list[str]:
    rows = [["SCRIPT", *report.releases]]
    for (_collection, script), results in report.rows().items():
        cells = [cell_text(results[release]) if release in results else "-" for release in report.releases]
        rows.append([printable(script), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def cell_text(result: Result) -> str:
    """Return a verdict and how long it took, where that was not known already."""
    if result.verdict in {Verdict.UNTRIED, Verdict.LEFT_OUT} or result.cached:
        return str(result.verdict)
    return f"{result.verdict} {result.seconds:.1f}s"


def report_json(report: Report) -> dict[str, object]:
    """Return a report as JSON's types (``docs/scripts.md``)."""
    return {
        "releases": report.releases,
        "differences": [{**cell_json(each.cell), "text": each.text} for each in report.differences],
        "results": [result_json(result) for result in report.results],
        "counts": count_verdicts(report.results),
        "exit_status": report.exit_status,
    }


def cell_json(cell: Cell) -> dict[str, str]:
    """Return a cell as a JSON object."""
    return {"collection": cell.collection, "script": cell.script, "release": cell.release}


def result_json(result: Result) -> dict[str, object]:
    """Return a result as a JSON object."""
    return {
        **cell_json(result.cell),
        "verdict": str(result.verdict),
        "message": result.message,
        "seconds": round(result.seconds, 3),
        "cached": result.cached,
        "uncacheable": result.uncacheable,
    }


def result_from(value: Mapping[str, object]) -> Result:
    """Return the result that a JSON object of :func:`result_json` holds."""
    seconds, uncacheable = value["seconds"], value.get("uncacheable")
    return Result(
        cell=Cell(str(value["collection"]), str(value["script"]), str(value["release"])),
        verdict=Verdict(str(value["verdict"])),
        message=str(value["message"]),
        seconds=float(seconds) if isinstance(seconds, int | float) else 0.0,
        cached=value["cached"] is True,
        uncacheable=None if uncacheable is None else str(uncacheable),
    )


def junit_xml(report: Report) -> bytes:
    """Return JUnit's XML as CI systems read it: a suite for each release, a test case for each script."""
    root = ET.Element("testsuites", name="stap-server scripts")
    for release in report.releases:
        results = [result for result in report.results if result.cell.release == release]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=release,
            tests=str(len(results)),
            failures=str(_count(results, Verdict.FAILS, Verdict.UNEXPECTED)),
            errors=str(_count(results, Verdict.UNTRIED)),
            skipped=str(_count(results, Verdict.LEFT_OUT, Verdict.EXPECTED)),
            time=f"{sum(result.seconds for result in results):.3f}",
        )
        for result in results:
            _add_case(suite, result)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _count(results: Sequence[Result], *verdicts: Verdict) -> int:
    return sum(result.verdict in verdicts for result in results)


def _add_case(suite: ET.Element, result: Result) -> None:
    name, collection = _xml(result.cell.script), _xml(result.cell.collection)
    case = ET.SubElement(suite, "testcase", name=name, classname=collection, time=f"{result.seconds:.3f}")
    kinds = {
        Verdict.FAILS: "failure",
        Verdict.UNEXPECTED: "failure",
        Verdict.UNTRIED: "error",
        Verdict.LEFT_OUT: "skipped",
        Verdict.EXPECTED: "skipped",
    }
    if kind := kinds.get(result.verdict):
        ET.SubElement(case, kind, message=_xml(result.message or str(result.verdict)))


def _xml(text: str) -> str:
    # XML 1.0 has no place for other control characters, nor for the stand-ins of bytes that are no text.
    return text.translate(_XML_CONTROL).encode("utf-8", "replace").decode("utf-8")
