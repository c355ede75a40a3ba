"""Sends a page's changes to browsers that follow it, as server-sent events (HTML Living Standard, 9.2).

Each is one JSON object: when that was, which run of the supervisor it is of, and the parts of the page that
changed, as HTML. Nothing is kept for one who follows but what he was sent last; nobody waits for him.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC

import anyio

from stapsrv.observe.feed import LiveFeed
from stapsrv.observe.http import Send
from stapsrv.observe.live import LiveState
from stapsrv.observe.web.pages import run_of

CONTENT_TYPE = "text/event-stream; charset=utf-8"
# Each costs a part of the page a second while something happens.
MAX_FOLLOWERS = 32
# Then a browser connects again by itself: so each follower is asked for the token once an hour.
LIFE_S = 3600.0
# For an eye that reads; pages that look alike are made once for all who follow.
LEAST_S = 1.0

_RETRY_MS = 2000

# Makes the changing parts of the page at a path, or nothing where there is none any more.
MakeRegions = Callable[[str, LiveState], Awaitable[Mapping[str, str] | None]]


class Followers:
    """The followers of one supervisor's pages, a bounded number."""

    def __init__(self, feed: LiveFeed, make_regions: MakeRegions) -> None:
        self._feed = feed
        self._make_regions = make_regions
        self._following = 0
        self._making = anyio.Lock()
        # The last by path: as many as follow at most.
        self._made: dict[str, tuple[LiveState, Mapping[str, str] | None]] = {}

    @property
    def is_full(self) -> bool:
        """Whether nobody more may follow."""
        return self._following >= MAX_FOLLOWERS

    async def follow(self, path: str, send: Send, *, least_s: float = LEAST_S) -> None:
        """Send what changes on a page, all of it at first, for LIFE_S seconds or until ``send`` raises."""
        if self.is_full:
            return
        self._following += 1
        try:
            await send(f"retry: {_RETRY_MS}\n\n".encode())
            with anyio.move_on_after(LIFE_S):
                await self._tell(path, send, least_s)
        finally:
            self._following -= 1
            if not self._following:
                self._made.clear()

    async def _tell(self, path: str, send: Send, least_s: float) -> None:
        sent: dict[str, str] = {}
        async with contextlib.aclosing(self._feed.updates(least_s=least_s)) as updates:
            async for update in updates:
                state = self._feed.current()
                regions = await self._regions(path, state) or {}
                changed = {name: html for name, html in regions.items() if sent.get(name) != html}
                sent |= changed
                if changed:
                    at = update.at.astimezone(UTC).isoformat(timespec="milliseconds")
                    told = json.dumps({"at": at, "run": run_of(state), "regions": changed})
                    await send(f"data: {told}\n\n".encode())
                else:
                    # Sending shows whether the follower has left.
                    await send(b":\n\n")

    async def _regions(self, path: str, state: LiveState) -> Mapping[str, str] | None:
        async with self._making:
            made = self._made.get(path)
            if made is None or made[0] is not state:
                if len(self._made) >= MAX_FOLLOWERS:
                    self._made.clear()
                made = self._made[path] = state, await self._make_regions(path, state)
            return made[1]
