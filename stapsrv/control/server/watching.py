"""The method ``watch``: sends one caller the changes, until its time is over or the caller leaves."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio

from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.control.protocol.live_fields import (
    TABLES,
    EndedRequestInfo,
    IntervalInfo,
    RunningRequestInfo,
    UpdateInfo,
)
from stapsrv.control.protocol.schema import encoded
from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorFacts
from stapsrv.errors import ControlError
from stapsrv.observe.feed import LiveFeed, Update
from stapsrv.observe.live import LiveState

# Each costs a look at all servers a few times a second while something happens.
MAX_WATCHES = 64

_SHAPES = dict(zip(TABLES, (ServerInfo, RunningRequestInfo, EndedRequestInfo, IntervalInfo), strict=True))


class Watches:
    """The watchers of one supervisor, a bounded number."""

    def __init__(self, feed: LiveFeed) -> None:
        self._feed = feed
        self._watching = 0

    async def watch(
        self, tell: Callable[[UpdateInfo], Awaitable[None]], *, timeout_s: float = math.inf
    ) -> None:
        """Tell a caller of the state and then of changes, for ``timeout_s`` seconds.

        ``tell`` may wait for the caller, and gives up by itself.

        Raises:
            ControlError: too many watch already (BUSY), or whatever ``tell`` raises.
        """
        if self._watching >= MAX_WATCHES:
            raise ControlError(
                f"{self._watching} watch already",
                code=Code.BUSY,
                remedy="ask for the status, or try again later",
            )
        self._watching += 1
        try:
            with anyio.move_on_after(timeout_s):
                async with contextlib.aclosing(self._feed.updates()) as updates:
                    async for update in updates:
                        await tell(update_info(update))
        finally:
            self._watching -= 1


def update_info(update: Update) -> UpdateInfo:
    """Return the JSON form of an update."""
    news = update.news
    whole = isinstance(news, LiveState)
    info: dict[str, Any] = {"kind": "snapshot" if whole else "changes"}
    info["at"] = update.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if news.supervisor is not None:
        info["supervisor"] = encoded(news.supervisor, SupervisorFacts)
    for table, shape in _SHAPES.items():
        rows = getattr(news, table)
        if rows or whole:
            info[table] = {str(key): encoded(row, shape) for key, row in rows.items()}
    if not isinstance(news, LiveState) and news.gone:
        info["gone"] = {table: list(map(str, keys)) for table, keys in news.gone.items()}
    return cast("UpdateInfo", info)
