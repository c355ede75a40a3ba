"""The last state of each supervisor, put together as updates come from their threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from stapsrv.control.cli.follow import Lost, Seen
from stapsrv.control.protocol.live_fields import LiveInfo, updated


class Followed(NamedTuple):
    """A supervisor that tells how it is."""

    user: str
    socket: Path
    may_command: bool
    info: LiveInfo


class States:
    """The last state of each supervisor; ``on_change`` is called once until the changes are read."""

    def __init__(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._followed: dict[str, Followed] = {}
        self._lost: dict[str, str] = {}
        self._is_unseen = False

    def take(self, news: Seen | Lost) -> None:
        """Add what one supervisor tells; called by any thread, and waits for nobody."""
        with self._lock:
            if isinstance(news, Lost):
                self._followed.pop(news.user, None)
                self._lost[news.user] = news.reason
            else:
                before = self._followed.get(news.user)
                info = updated(before and before.info, news.update)
                self._followed[news.user] = Followed(news.user, news.socket, news.may_command, info)
                self._lost.pop(news.user, None)
            is_first, self._is_unseen = not self._is_unseen, True
        if is_first:
            self._on_change()

    def look(self) -> tuple[Mapping[str, Followed], Mapping[str, str]]:
        """Return the supervisors by user, and why others are not followed now."""
        with self._lock:
            self._is_unseen = False
            return dict(self._followed), dict(self._lost)
