"""The web page's answers, and what they demand of who asks."""

from __future__ import annotations

import json
from http import HTTPStatus

import anyio
import pytest
from kit.service import LogLines
from kit.supervisor import FakeSupervisor, server_status

from stapsrv.compile.stats import ProcessCounters
from stapsrv.config.addresses import MetricsAddress
from stapsrv.observe.feed import LiveFeed
from stapsrv.observe.http import HttpRequest, Page
from stapsrv.observe.web import events
from stapsrv.observe.web.access import Access
from stapsrv.observe.web.site import HEADERS, WebSite

pytestmark = pytest.mark.anyio

TOKEN = "0123456789abcdef-token"


def a_site(token: str | None = None) -> WebSite:
    supervisor = FakeSupervisor(server_status(7, nickname="native"))
    return WebSite(
        LiveFeed(supervisor.status, supervisor.activity),
        counters=ProcessCounters(),
        activity=supervisor.activity,
        access=Access.at(MetricsAddress("127.0.0.1", 1), host_name="build1", token=token),
    )


async def get(site: WebSite, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Page:
    name, _, query = path.partition("?")
    asked = HttpRequest(
        path=name, query=query, method=method, body=body, headers={"host": "localhost:1", **headers}
    )
    page = await site.find(asked)
    assert [header for header in page.headers if header in HEADERS] == list(HEADERS)
    return page


@pytest.mark.parametrize(
    ("path", "status", "kind", "words"),
    [
        ("/", 200, "text/html; charset=utf-8", b"Compile servers on build1"),
        ("/?a=b", 200, "text/html; charset=utf-8", b"native"),
        ("/server/7", 200, "text/html; charset=utf-8", b"Server native"),
        ("/server/8", 404, "text/html; charset=utf-8", b"There is no such page"),
        ("/static/page.css", 200, "text/css; charset=utf-8", b"prefers-color-scheme: dark"),
        ("/static/page.js", 200, "text/javascript; charset=utf-8", b"EventSource"),
        ("/static/icon.svg", 200, "image/svg+xml", b"<svg"),
        ("/static/../site.py", 404, "text/html; charset=utf-8", b"There is no such page"),
        ("/login", 404, "text/plain; charset=utf-8", b"no token is asked for here"),
        ("/events?page=/nothing", 404, "text/plain; charset=utf-8", b"there is no such page"),
    ],
)
async def test_pages(path, status, kind, words):
    page = await get(a_site(), path)
    assert (page.status, page.content_type) == (status, kind)
    assert words in page.body


async def test_policy_allows_nothing_but_the_own_origin():
    policy = dict(HEADERS)["Content-Security-Policy"]
    directives = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert directives["default-src"] == directives["frame-ancestors"] == directives["base-uri"] == "'none'"
    assert set(directives.values()) == {"'none'", "'self'"}
    assert dict(HEADERS)["X-Content-Type-Options"] == "nosniff"


async def test_strange_host_is_refused_whatever_it_asks_for():
    site = a_site(TOKEN)
    for path in ("/", "/events", "/static/page.js", "/login"):
        page = await get(site, path, host="evil.example", authorization=f"Bearer {TOKEN}")
        assert page.status is HTTPStatus.MISDIRECTED_REQUEST


async def test_without_the_token_there_is_a_form_alone():
    site = a_site(TOKEN)
    for path in ("/", "/server/7", "/events", "/nothing"):
        page = await get(site, path)
        assert page.status is HTTPStatus.UNAUTHORIZED
        assert b"native" not in page.body
        assert page.stream is None
        assert ("WWW-Authenticate", "Bearer") in page.headers
    assert (await get(site, "/static/page.css")).status is HTTPStatus.OK
    assert (await get(site, "/login")).status is HTTPStatus.OK


async def test_token_is_exchanged_for_a_cookie():
    site = a_site(TOKEN)
    assert site.forms == ("/login",)
    wrong = await get(site, "/login", "POST", b"token=wrong")
    assert wrong.status is HTTPStatus.FORBIDDEN
    assert "Set-Cookie" not in dict(wrong.headers)
    right = await get(site, "/login", "POST", f"token={TOKEN}".encode())
    assert (right.status, dict(right.headers)["Location"]) == (HTTPStatus.SEE_OTHER, "/")
    cookie = dict(right.headers)["Set-Cookie"].partition(";")[0]
    assert b"native" in (await get(site, "/", cookie=cookie)).body
    assert b"native" in (await get(site, "/", authorization=f"Bearer {TOKEN}")).body


async def test_events_are_of_the_page_that_is_named():
    site = a_site()
    page = await get(site, "/events?page=%2Fserver%2F7")
    assert page.content_type.startswith("text/event-stream")
    assert page.stream is not None
    pieces: list[bytes] = []

    async def take(data: bytes) -> None:
        pieces.append(data)
        if len(pieces) == 2:
            scope.cancel()

    with anyio.fail_after(30), anyio.CancelScope() as scope:
        await page.stream(take)
    assert set(json.loads(pieces[1][6:])["regions"]) == {
        "live_server",
        "live_releases",
        "live_running",
        "live_recent",
        "live_counts",
    }


async def test_too_many_who_follow_are_told(monkeypatch):
    monkeypatch.setattr(events, "MAX_FOLLOWERS", 0)
    assert (await get(a_site(), "/events")).status is HTTPStatus.SERVICE_UNAVAILABLE


async def test_fault_in_the_record_of_the_day_is_logged_and_ends_nothing(monkeypatch):
    async def fail(_record: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("stapsrv.observe.web.day.DayRecord.keep", fail)
    lines = LogLines()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(a_site().keep_day, lines.log)
        await lines.wait("metrics.crashed")
        tasks.cancel_scope.cancel()
