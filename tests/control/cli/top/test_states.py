"""States put together from news: one call for many changes, and what is lost is gone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from kit.supervisor import server_status, supervisor_status

from stapsrv.control.cli.follow import Lost, Seen
from stapsrv.control.cli.top.states import States
from stapsrv.control.server.watching import update_info
from stapsrv.observe.feed import Update
from stapsrv.observe.live import Differences, LiveState

AT = datetime(2026, 2, 3, 4, 5, 7, tzinfo=UTC)
EMPTY = {"running": {}, "recent": {}, "history": {}}


def seen(news) -> Seen:
    return Seen("me", Path("/control.sock"), True, update_info(Update(AT, news)))


def test_news_are_put_together_and_announced_once_until_somebody_looks():
    calls = []
    states = States(lambda: calls.append(1))
    states.take(seen(LiveState(supervisor=supervisor_status(), servers={7: server_status(7)}, **EMPTY)))
    states.take(seen(Differences(servers={8: server_status(8)})))
    assert len(calls) == 1
    followed, lost = states.look()
    assert (list(followed["me"].info["servers"]), lost) == (["7", "8"], {})
    states.take(seen(Differences(gone={"servers": (7,)})))
    assert len(calls) == 2
    assert list(states.look()[0]["me"].info["servers"]) == ["8"]


def test_supervisor_that_is_lost_is_named_until_it_is_back():
    states = States(lambda: None)
    whole = LiveState(supervisor=supervisor_status(), servers={}, **EMPTY)
    states.take(seen(whole))
    states.take(Lost("me", "the supervisor has ended"))
    assert states.look() == ({}, {"me": "the supervisor has ended"})
    states.take(seen(whole))
    assert (list(states.look()[0]), states.look()[1]) == (["me"], {})
