"""HTML of the pages: whole, escaped, and with what the parts that change are called."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from kit.web import HOSTILE, NOW, a_hostile_moment, a_moment, a_server

from stapsrv.observe.web.pages import View, find_view, release_path
from stapsrv.observe.web.render import Renderer, days_until, in_bytes, moment_of, percent, seconds

RENDERER = Renderer()
PATHS = ["/", "/server/7", "/request/12", "/request/11", "/add-client"]
VOID = {"meta", "link", "input"}


class Elements(HTMLParser):
    """Elements of a page, which have to be closed in order; those with an id, and those that change."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str | None]:
        return [value for attribute, value in self.attributes if attribute == name]


def page_at(path, moment):
    view = find_view(path, moment)
    assert view is not None
    return RENDERER.page(view, moment).decode()


@pytest.mark.parametrize("path", [*PATHS, "/release/6.1.0-test"])
def test_page_is_whole_and_has_nothing_inline(path):
    elements = Elements(page_at(path, a_moment()))
    assert {"main", "header", "nav", "footer", "h1"} <= elements.seen
    names = [name for name, _ in elements.attributes]
    assert "style" not in names
    assert not [name for name in names if name.startswith("on")]
    assert all(address.startswith(("/", "#")) for address in elements.values("href") + elements.values("src"))
    ids = elements.values("id")
    assert len(ids) == len(set(ids))
    for scope in elements.values("scope"):
        assert scope in {"col", "row"}


@pytest.mark.parametrize("path", [*PATHS[:-1], release_path(HOSTILE), "/add-client"])
def test_every_value_is_escaped(path):
    moment = a_hostile_moment()
    text = page_at(path, moment)
    elements = Elements(text)
    assert HOSTILE not in text
    assert elements.values("src") == ["/static/page.js"]
    assert text.count("<script") == 1
    view = find_view(path, moment)
    assert view is not None
    regions = RENDERER.regions(view, moment)
    assert all("<script" not in html for html in regions.values())
    # Each has its element, and is what is in it at first.
    assert sorted(regions) == sorted(filter(None, elements.values("data-live")))
    for html in regions.values():
        assert html in text


def test_regions_stay_the_same_while_nothing_changes():
    moment = a_moment()
    view = find_view("/", moment)
    assert view is not None
    later = a_moment()
    object.__setattr__(later, "at", NOW + timedelta(seconds=30))
    again = find_view("/", later)
    assert again is not None
    assert RENDERER.regions(view, moment) == RENDERER.regions(again, later)


def test_graphs_have_words():
    text = page_at("/", a_moment())
    assert '<svg viewBox="-36 -8 620 150" role="img" aria-labelledby="requests-title requests-text">' in text
    assert "The last value is 4, the highest of the last day 4 (in ten minutes)." in text
    assert re.search(r"<th scope=\"row\">2026-02-03 04:00:00 UTC</th><td class=\"number\">4</td>", text)


def test_commands_are_exact():
    text = page_at("/add-client", a_moment())
    assert "<code>stap --use-server=build1:7 --trust-servers=ssl,no-prompt</code>" in text
    assert "<code>AB:CD</code>" in text
    assert "\nstap-compile --server build1:7 --fingerprint SHA256:AB:CD -r 6.1.0-test -e 'probe begin" in text
    assert "stap --use-server=build1:7 -p4 -r 6.1.0-test -e 'probe begin" in text


def test_certificate_s_days_are_shown():
    assert "364 days" in page_at(
        "/", a_moment(a_server(certificate_expires=NOW + timedelta(days=364, hours=1)))
    )


def test_scripts_are_counted_by_verdict_where_there_are_collections():
    scripts = {"6.1.0-test": {"ok": 41, "fails": 2}}
    for path in ("/", "/release/6.1.0-test"):
        text = page_at(path, a_moment(scripts=scripts, new_releases=("6.1.0-test",)))
        assert '<a href="/release/6.1.0-test">6.1.0-test</a> (installed since the start)</th>' in text
        assert '<td class="number">43</td>' in text
        assert "2" in re.findall(r'<span class="state fails">fails</span>\s+(\d+)', text)
        assert "Scripts" not in page_at(path, a_moment())


def test_form_and_missing_page_show_nothing_of_the_supervisor():
    text = RENDERER.page(View("login.html", {"refused": True})).decode()
    assert "That is not the token." in text
    assert {"nav", "footer"}.isdisjoint(Elements(text).seen)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (seconds(None), "\N{EN DASH}"),
        (seconds(0.0), "0.00 s"),
        (seconds(9.994), "9.99 s"),
        (seconds(75.9), "1 min 15 s"),
        (seconds(59.0), "59 s"),
        (seconds(7300), "2 h 1 min"),
        (percent(None), "\N{EN DASH}"),
        (percent(99.6), "100 %"),
        (in_bytes(1023), "1023 B"),
        (in_bytes(2048), "2.0 KiB"),
        (in_bytes(3 * 1024**2), "3.0 MiB"),
        (days_until(None, NOW), "\N{EN DASH}"),
        (moment_of(None), "\N{EN DASH}"),
        (moment_of(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), "2026-01-02 03:04:05 UTC"),
    ],
)
def test_values_for_people(shown, expected):
    assert shown == expected
