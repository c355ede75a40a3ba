"""The page: whole in itself, and safe with what scripts and compilers say."""

from __future__ import annotations

from datetime import UTC, datetime

from stapsrv.scripts.matrix import Cell, Difference, Result, Verdict
from stapsrv.scripts.page import html_page
from stapsrv.scripts.report import Report


def test_page_escapes_names_and_messages_and_loads_nothing():
    cell = Cell("/srv", "<a>.stp", "6.1")
    failed = Result(cell=cell, verdict=Verdict.FAILS, message="<script>")
    other = Result(cell=Cell("/srv", "b.stp", "6.2"), verdict=Verdict.OK)
    page = html_page(Report((failed, other), (Difference(cell, "worked <once>"),)), now=datetime.now(UTC))
    assert "&lt;a&gt;.stp" in page
    assert "worked &lt;once&gt;" in page
    assert '<td class="fails">fails 0.0s<small>&lt;script&gt;</small></td>' in page
    assert "<td>-</td>" in page
    assert not any(word in page for word in ("<script", "src=", "href=", "url("))
