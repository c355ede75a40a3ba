"""A check's results as one page of HTML that needs nothing else. Pure."""

from __future__ import annotations

from datetime import datetime
from html import escape

from stapsrv.scripts.matrix import Result, Verdict
from stapsrv.scripts.report import Report, cell_text

_CLASSES = {
    Verdict.OK: "ok",
    Verdict.WARNS: "warns",
    Verdict.FAILS: "fails",
    Verdict.EXPECTED: "expected",
    Verdict.UNEXPECTED: "fails",
    Verdict.UNTRIED: "untried",
    Verdict.LEFT_OUT: "left",
}
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border: 1px solid #8884; padding: .25rem .5rem; text-align: left; vertical-align: top; }
thead th { background: Canvas; position: sticky; top: 0; }
small { display: block; overflow-wrap: anywhere; }
.ok { background: #2a92; } .warns { background: #db32; } .fails { background: #d333; }
.expected, .left { background: #8882; } .untried { background: #d832; }
"""


def html_page(report: Report, *, now: datetime) -> str:
    """Return the page of a report that was made ``now``."""
    releases = report.releases
    head = "".join(f'<th scope="col">{escape(release)}</th>' for release in releases)
    rows = "".join(
        f'<tr><th scope="row" title="{escape(collection)}">{escape(script)}</th>'
        + "".join(_cell(results.get(release)) for release in releases)
        + "</tr>\n"
        for (collection, script), results in report.rows().items()
    )
    differences = "".join(
        f"<li><b>{escape(each.cell.script)}</b>: {escape(each.text)}</li>\n" for each in report.differences
    )
    changed = f"<h2>What is different</h2>\n<ul>\n{differences}</ul>\n" if differences else ""
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Scripts against kernels</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Scripts against kernels</h1>
<p>Checked {now:%Y-%m-%d %H:%M:%S %Z}: {len(report.rows())} scripts, {len(releases)} releases.</p>
{changed}<table>
<thead><tr><th scope="col">Script</th>{head}</tr></thead>
<tbody>
{rows}</tbody>
</table>
</body>
</html>
"""


def _cell(result: Result | None) -> str:
    if result is None:
        return "<td>-</td>"
    message = f"<small>{escape(result.message)}</small>" if result.message else ""
    return f'<td class="{_CLASSES[result.verdict]}">{escape(cell_text(result))}{message}</td>'
