"""A moment that the web page shows, with values that a page must escape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import attrs

from stapsrv.compile.activity import EndedRequest, RunningRequest
from stapsrv.compile.health import Health
from stapsrv.compile.stats import CacheCounts, Outcome
from stapsrv.observe.live import LiveState
from stapsrv.observe.web.day import Minute
from stapsrv.observe.web.pages import Moment
from stapsrv.rejection import RejectReason
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.status import ReleaseStatus, ServerStatus

from .live import ended, running
from .supervisor import EXPIRES, server_status, supervisor_status

HOSTILE = "<script>alert('x')</script>&\""
NOW = datetime(2026, 2, 3, 4, 5, 16, tzinfo=UTC)


def a_server(server_id: int = 7, state: State = State.SERVING, **facts: object) -> ServerStatus:
    values: dict[str, object] = {
        "nickname": "lab",
        "workers": 2,
        "certificate_expires": EXPIRES,
        "certificate_serial": "06:73",
        "certificate_sha256": "AB:CD",
        "releases": (ReleaseStatus("6.1.0-test", Health.HEALTHY, None),),
        "refusals": {RejectReason.DENIED: 3, RejectReason.MEMORY: 0},
        "cache": CacheCounts(hits=3, misses=1),
    }
    return server_status(server_id, state, **(values | facts))


def a_moment(
    *servers: ServerStatus,
    under_way: dict[int, RunningRequest] | None = None,
    recent: dict[int, EndedRequest] | None = None,
    host: str = "build1",
    **facts: object,
) -> Moment:
    servers = servers or (a_server(),)
    state = LiveState(
        supervisor=attrs.evolve(supervisor_status(**facts), servers=()),
        servers={server.id: server for server in servers},
        running={12: running()} if under_way is None else under_way,
        recent={11: ended()} if recent is None else recent,
        history={},
    )
    minutes = {
        int((NOW - timedelta(minutes=5)).timestamp()) // 60 * 60: Minute(
            requests=4, answers=4, hits=3, queued=2, compiles=1, compile_s=1.5
        )
    }
    return Moment(at=NOW, state=state, minutes=minutes, host=host)


def a_hostile_moment() -> Moment:
    """A moment in which all that clients, hosts and files may name is HTML."""
    releases = (ReleaseStatus(HOSTILE, Health.UNHEALTHY, HOSTILE),)
    named = {
        "nickname": HOSTILE,
        "reason": HOSTILE,
        "certificate_serial": HOSTILE,
        "certificate_sha256": HOSTILE,
        "cache": CacheCounts(uncacheable={HOSTILE: 1}, builds={HOSTILE: 1}),
    }
    failed = a_server(7, State.FAILED, releases=releases, **named)
    serving = a_server(8, releases=(ReleaseStatus(HOSTILE, Health.HEALTHY, None),), **named)
    named = {"client": HOSTILE, "release": HOSTILE, "digest": HOSTILE, "worker": HOSTILE}
    return a_moment(
        failed,
        serving,
        under_way={12: running(**named)},
        recent={
            11: ended(**named, build=HOSTILE),
            10: ended(Outcome.REFUSED, **named, rejection=RejectReason.MEMORY),
        },
        host=HOSTILE,
        refused=(HOSTILE,),
        scripts={HOSTILE: {"ok": 1, HOSTILE: 2}},
        new_releases=(HOSTILE,),
        version=HOSTILE,
        stap_version=HOSTILE,
        user=HOSTILE,
    )
