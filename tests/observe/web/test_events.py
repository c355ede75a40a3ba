"""Events for who follows a page: what changed, once for all, and no more than a few who follow."""

from __future__ import annotations

import contextlib
import json

import anyio
import pytest
from kit.supervisor import FakeSupervisor, server_status

from stapsrv.observe.feed import LiveFeed
from stapsrv.observe.live import LiveState
from stapsrv.observe.web import events
from stapsrv.observe.web.events import Followers

pytestmark = pytest.mark.anyio


class Page:
    """A page whose one part is how many compiles server 7 runs."""

    def __init__(self) -> None:
        self.supervisor = FakeSupervisor(server_status(7))
        self.made = 0
        feed = LiveFeed(self.supervisor.status, self.supervisor.activity)
        self.followers = Followers(feed, self._make)

    async def _make(self, path: str, state: LiveState) -> dict[str, str] | None:
        self.made += 1
        if path != "/":
            return None
        return {"live_running": str(state.servers[7].work.running), "live_fixed": "fixed"}


class Browser:
    """One who follows."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._came = anyio.Event()

    async def take(self, data: bytes) -> None:
        self.pieces.append(data)
        self._came.set()
        self._came = anyio.Event()

    async def wait_pieces(self, count: int) -> None:
        with anyio.fail_after(30):
            while len(self.pieces) < count:
                await self._came.wait()

    @property
    def told(self) -> list[dict]:
        lines = [piece for piece in self.pieces if piece.startswith(b"data: ")]
        assert all(piece.endswith(b"\n\n") and piece.count(b"\n") == 2 for piece in lines)
        return [json.loads(piece[6:]) for piece in lines]


@contextlib.asynccontextmanager
async def following(page: Page, *browsers: Browser, path: str = "/"):
    async def follow(browser: Browser) -> None:
        await page.followers.follow(path, browser.take, least_s=0.0)

    async with anyio.create_task_group() as tasks:
        for browser in browsers:
            tasks.start_soon(follow, browser)
        yield
        tasks.cancel_scope.cancel()


async def test_all_is_told_at_first_and_then_what_changed():
    page, browser = Page(), Browser()
    async with following(page, browser):
        await browser.wait_pieces(2)
        page.supervisor.change(7, running=2)
        await browser.wait_pieces(3)
    assert browser.pieces[0] == b"retry: 2000\n\n"
    assert [told["regions"] for told in browser.told] == [
        {"live_running": "0", "live_fixed": "fixed"},
        {"live_running": "2"},
    ]
    assert {told["run"] for told in browser.told} == {"4242-20260203T040506"}


async def test_page_is_made_once_for_all_who_follow_it():
    page, browsers = Page(), [Browser() for _ in range(5)]
    async with following(page, *browsers):
        for browser in browsers:
            await browser.wait_pieces(2)
        assert page.made == 1
        page.supervisor.change(7, running=1)
        for browser in browsers:
            await browser.wait_pieces(3)
        assert page.made == 2
    assert page.followers._made == {}


async def test_change_that_the_page_does_not_show_is_a_sign_of_life_alone():
    page, browser = Page(), Browser()
    async with following(page, browser):
        await browser.wait_pieces(2)
        page.supervisor.change(7, queued=1)
        await browser.wait_pieces(3)
    assert browser.pieces[2] == b":\n\n"


async def test_page_that_is_gone_is_told_no_more_of():
    page, browser = Page(), Browser()
    async with following(page, browser, path="/request/1"):
        await browser.wait_pieces(2)
    assert browser.told == []


async def test_no_more_follow_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(events, "MAX_FOLLOWERS", 2)
    page, browsers = Page(), [Browser(), Browser()]
    async with following(page, *browsers):
        for browser in browsers:
            await browser.wait_pieces(2)
        assert page.followers.is_full
        late = Browser()
        await page.followers.follow("/", late.take)
        assert late.pieces == []
    assert not page.followers.is_full


async def test_who_follows_for_long_is_sent_away_to_come_again(monkeypatch):
    monkeypatch.setattr(events, "LIFE_S", 0.05)
    page, browser = Page(), Browser()
    with anyio.fail_after(30):
        await page.followers.follow("/", browser.take)
    assert len(browser.told) == 1


async def test_one_who_fails_ends_alone():
    page, browser = Page(), Browser()

    async def refuse(_data: bytes) -> None:
        raise TimeoutError

    async with following(page, browser):
        with pytest.raises(TimeoutError):
            await page.followers.follow("/", refuse)
        await browser.wait_pieces(2)
