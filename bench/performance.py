#!/usr/bin/env python3
"""Measure what this project promises of its speed, beside SystemTap's own server, in one run on one machine.

For each load both servers are asked in turn, and the figures that count are ratios of medians: a busy
machine slows both. A new script is one that nobody has compiled before; the raw client speaks TLS and nothing
else. All that is made is in one temporary directory, and gone at the end; nothing leaves this host.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from compare import end, progress

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.real import Installation, Unavailable
from loads import LOADS, Bench, Verdict

Results = dict[str, Any]
"""What was measured, as JSON has it."""

_BEGIN, _END = "<!-- figures: bench/performance.py -->\n", "<!-- end of figures -->\n"


def measure(options: argparse.Namespace, installation: Installation) -> Results:
    """Run the loads that were asked for; returns what is shown, as JSON has it."""
    loads = {}
    with contextlib.ExitStack() as cleanup:
        # Not in a busy /tmp: servers watch the way to what results depend on.
        parent = os.environ.get("TMPDIR") or Path.home()
        temporary = tempfile.TemporaryDirectory(prefix="stapsrv-bench.", dir=parent)
        place = Path(cleanup.enter_context(temporary))
        bench = Bench(installation, place, rounds=options.rounds, backend=options.backend)
        averages = [os.getloadavg()[0]]
        for name in options.loads or LOADS:
            progress(f"measuring: {name}")
            loads[name] = [attrs.asdict(verdict) for verdict in LOADS[name](bench)]
            averages.append(os.getloadavg()[0])
    return {
        "release": installation.release,
        "cores": len(os.sched_getaffinity(0)),
        "averages": averages,
        "rounds": options.rounds,
        "loads": loads,
    }


def merged(runs: Sequence[Results]) -> Results:
    """Return the figures of several runs as one: of each load, those of the last run that has it."""
    loads = {name: verdicts for run in runs for name, verdicts in run["loads"].items()}
    averages = [average for run in runs for average in run["averages"]]
    return {**runs[-1], "averages": averages, "loads": loads}


def plain(found: Sequence[Verdict], original: str = "original", ours: str = "stapsrv") -> list[str]:
    """Return the lines of a table for a terminal."""
    rows = [("", original, ours, "measured", "to reach", ""), *map(_cells, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def markdown(found: Sequence[Verdict]) -> list[str]:
    """Return the lines of a table for a page."""
    lines = ["| load | original | stapsrv | measured | to reach | |", "| --- | --- | --- | --- | --- | --- |"]
    return lines + [f"| {' | '.join(_cells(verdict))} |" for verdict in found]


def _cells(verdict: Verdict) -> tuple[str, ...]:
    word = {True: "reached", False: "MISSED", None: ""}[verdict.reached]
    return verdict.load, verdict.original, verdict.ours, verdict.measured, verdict.target, word


def shown(results: Results) -> tuple[str, list[Verdict]]:
    """Return a sentence on the circumstances, and the rows."""
    averages = results["averages"]
    circumstances = (
        f"Kernel release {results['release']}, {results['cores']} cores, load average from "
        f"{min(averages):.1f} to {max(averages):.1f}; medians of {results['rounds']} rounds or more, "
        "least to most in brackets."
    )
    loads = results["loads"]
    return circumstances, [Verdict(**row) for name in LOADS for row in loads.get(name, ())]


def put_into(page: Path, results: Results) -> None:
    """Replace the figures in a page by these."""
    circumstances, verdicts = shown(results)
    text = page.read_text()
    head, _, rest = text.partition(_BEGIN)
    _, mark, tail = rest.partition(_END)
    if not mark:
        sys.exit(f"{page} has no place for figures: a line {_BEGIN.strip()} and a line {_END.strip()}")
    table = "\n".join(markdown(verdicts))
    page.write_text(f"{head}{_BEGIN}{circumstances}\n\n{table}\n{_END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add: Callable[..., argparse.Action] = parser.add_argument
    add(
        "loads",
        nargs="*",
        metavar="LOAD",
        help=f"some of: {', '.join(LOADS)} (default: all, up to 25 minutes)",
    )
    add("--rounds", type=int, default=3, metavar="N", help="how often servers are asked in turn, at least")
    add(
        "--backend",
        choices=("asyncio", "uvloop", "trio"),
        default="asyncio",
        help="this project's event loop",
    )
    add("--json", action="store_true", help="print the figures as JSON, to be kept")
    add(
        "--from", dest="kept", type=Path, nargs="+", metavar="FILE", help="measure nothing, take such figures"
    )
    add("--into", type=Path, metavar="PAGE", help="put the table in a page, such as docs/performance.md")
    options = parser.parse_args()
    if unknown := [name for name in options.loads if name not in LOADS]:
        parser.error(f"{unknown[0]} is no load; there are {', '.join(LOADS)}")
    if options.kept is not None:
        results = merged([json.loads(file.read_text()) for file in options.kept])
    else:
        if os.geteuid() == 0:
            parser.error(
                "compile servers do not run as root; try: packaging/as-stap-server bench/performance.py"
            )
        try:
            installation = Installation.find(os.environ)
        except Unavailable as exc:
            parser.error(str(exc))
        signal.signal(signal.SIGTERM, end)
        results = measure(options, installation)
    if options.into is not None:
        put_into(options.into, results)
    elif options.json:
        print(json.dumps(results))
    else:
        circumstances, verdicts = shown(results)
        print(*plain(verdicts), "", circumstances, sep="\n")


if __name__ == "__main__":
    main()
