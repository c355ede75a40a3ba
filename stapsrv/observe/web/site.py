"""The web page's answers: a request in, a page out, after the checks of access.

Nothing here changes anything, and no page has a script's text or a client's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from importlib import resources
from typing import TypeVar
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.activity import Activity
from stapsrv.compile.stats import ProcessCounters
from stapsrv.observe.feed import LiveFeed
from stapsrv.observe.http import HttpRequest, Page
from stapsrv.observe.live import LiveState
from stapsrv.observe.web.access import Access
from stapsrv.observe.web.day import DayRecord
from stapsrv.observe.web.events import CONTENT_TYPE as EVENTS
from stapsrv.observe.web.events import Followers
from stapsrv.observe.web.pages import Moment, View, find_view
from stapsrv.observe.web.render import Renderer

LOGIN = "/login"
HTML = "text/html; charset=utf-8"
# All that a page needs comes from its own origin, and nothing of it stands within the page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)

_STATIC = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_RETRY_S = 60.0

_T = TypeVar("_T")


class WebSite:
    """The pages of one supervisor."""

    def __init__(
        self, feed: LiveFeed, *, counters: ProcessCounters, activity: Activity, access: Access
    ) -> None:
        self._feed = feed
        self._access = access
        self._day = DayRecord(counters, activity)
        self._renderer = Renderer()
        self._followers = Followers(feed, self._make_regions)
        # Of its own: a page waits for no compile's thread, and takes no second one.
        self._thread = anyio.CapacityLimiter(1)
        files = resources.files("stapsrv.observe.web") / "static"
        self._static = {
            f"/static/{name}": Page(HTTPStatus.OK, (files / name).read_bytes(), kind)
            for name, kind in _STATIC.items()
        }

    @property
    def forms(self) -> tuple[str, ...]:
        """The paths that take a form."""
        return (LOGIN,) if self._access.wants_token else ()

    async def keep_day(self, log: Log) -> None:
        """Record the last day, until cancelled."""
        while True:
            try:
                await self._day.keep()
            except Exception:
                # Whatever it is, servers go on, and graphs begin again.
                log.exception("metrics.crashed")
            await anyio.sleep(_RETRY_S)

    async def find(self, request: HttpRequest) -> Page:
        """Return the page for a request."""
        page = await self._find(request)
        return attrs.evolve(page, headers=(*page.headers, *HEADERS))

    async def _find(self, request: HttpRequest) -> Page:
        if not self._access.knows_host(request.headers.get("host", "")):
            return Page.of_lines(
                HTTPStatus.MISDIRECTED_REQUEST, "this host is not called so; use its address"
            )
        if request.path in self._static:
            return self._static[request.path]
        if request.path == LOGIN:
            return await self._login(request)
        if not self._access.admits(request):
            return await self._ask_token(HTTPStatus.UNAUTHORIZED)
        return await (self._events if request.path == "/events" else self._view)(request)

    async def _view(self, request: HttpRequest) -> Page:
        # Some things change without a note, such as a farm: they are read for each page.
        moment = self._moment(self._feed.state(), request.headers.get("host", ""))
        body = await self._in_thread(self._shown, request.path, moment)
        if body is None:
            return await self._page(View("missing.html"), HTTPStatus.NOT_FOUND, moment)
        return Page(HTTPStatus.OK, body, HTML)

    async def _login(self, request: HttpRequest) -> Page:
        if not self._access.wants_token:
            return Page.of_lines(HTTPStatus.NOT_FOUND, "no token is asked for here")
        if request.method != "POST":
            return await self._ask_token(HTTPStatus.OK)
        cookie = self._access.cookie_for(request.body)
        if cookie is None:
            return await self._ask_token(HTTPStatus.FORBIDDEN)
        return Page(HTTPStatus.SEE_OTHER, b"", headers=(("Location", "/"), ("Set-Cookie", cookie)))

    async def _ask_token(self, status: HTTPStatus) -> Page:
        page = await self._page(View("login.html", {"refused": status is HTTPStatus.FORBIDDEN}), status)
        if status is HTTPStatus.UNAUTHORIZED:
            return attrs.evolve(page, headers=(("WWW-Authenticate", "Bearer"),))
        return page

    async def _events(self, request: HttpRequest) -> Page:
        path = parse_qs(request.query, max_num_fields=4).get("page", ["/"])[0]
        moment = self._moment(self._feed.current(), request.headers.get("host", ""))
        if await self._in_thread(find_view, path, moment) is None:
            return Page.of_lines(HTTPStatus.NOT_FOUND, "there is no such page")
        if self._followers.is_full:
            return Page.of_lines(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many follow already; reload now and then"
            )
        return Page(HTTPStatus.OK, b"", EVENTS, stream=partial(self._followers.follow, path))

    async def _page(self, view: View, status: HTTPStatus, moment: Moment | None = None) -> Page:
        return Page(status, await self._in_thread(self._renderer.page, view, moment), HTML)

    def _shown(self, path: str, moment: Moment) -> bytes | None:
        view = find_view(path, moment)
        return None if view is None else self._renderer.page(view, moment)

    async def _make_regions(self, path: str, state: LiveState) -> Mapping[str, str] | None:
        return await self._in_thread(self._regions, path, self._moment(state, ""))

    def _regions(self, path: str, moment: Moment) -> Mapping[str, str] | None:
        view = find_view(path, moment)
        return None if view is None else self._renderer.regions(view, moment)

    async def _in_thread(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await anyio.to_thread.run_sync(partial(work, *arguments), limiter=self._thread)

    def _moment(self, state: LiveState, host: str) -> Moment:
        return Moment(
            at=datetime.now(UTC),
            state=state,
            minutes=self._day.minutes(),
            host=self._access.shown_name(host),
        )
