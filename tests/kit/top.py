"""What ``top`` shows in tests: two servers, requests under way, and some that have ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs

from stapsrv.compile.activity import Interval
from stapsrv.compile.health import Health
from stapsrv.compile.stats import CacheCounts, Outcome, RecentTimes, Source, Stage
from stapsrv.config.settings import ServerSettings
from stapsrv.control.cli.follow import Seen
from stapsrv.control.server.watching import update_info
from stapsrv.observe.feed import Update
from stapsrv.observe.live import LiveState
from stapsrv.rejection import RejectReason
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.status import ReleaseStatus, ServerStatus

from .live import ended, running
from .supervisor import DEFAULTS, server_status, supervisor_status

NOW = datetime(2026, 2, 3, 4, 15, 0, tzinfo=UTC)
SOCKET = Path("/run/stap-server/me/control.sock")


def native(log: Path = Path("/log"), **facts: object) -> ServerStatus:
    return server_status(
        7,
        settings=ServerSettings(port=5001, nickname="native", log=log).resolved(DEFAULTS),
        workers=2,
        running=2,
        queued=1,
        done=12,
        certificate_expires=NOW + timedelta(days=364, hours=5),
        refusals={RejectReason.QUEUE_LENGTH: 3},
        releases=(ReleaseStatus("6.1.0-56-amd64", Health.HEALTHY, None),),
        recent=RecentTimes(12, 0.25, 4.5),
        cache=CacheCounts(hits=9, misses=2, shared=1),
        **facts,
    )


def cloud() -> ServerStatus:
    ill = ReleaseStatus("6.12.1-cloud-amd64", Health.UNHEALTHY, "cc1: all warnings being treated as errors")
    return server_status(
        8,
        State.DRAINING,
        settings=ServerSettings(port=5002, nickname="cloud").resolved(DEFAULTS),
        workers=1,
        certificate_expires=NOW + timedelta(days=9),
        refusals={RejectReason.DENIED: 1, RejectReason.QUEUE_LENGTH: 1},
        releases=(ReleaseStatus("6.1.0-56-cloud-amd64", Health.HEALTHY, None), ill),
    )


def live_state(*servers: ServerStatus) -> LiveState:
    shown = servers or (native(), cloud())
    begin = int(NOW.timestamp())
    own = {"release": "6.1.0-56-amd64", "digest": "ce114e4501d2"}
    first = ended(ended=NOW - timedelta(seconds=70), **own)
    return LiveState(
        supervisor=supervisor_status(compiles=2),
        servers={server.id: server for server in shown},
        running={
            4: running(Stage.COMPILE, since=NOW - timedelta(seconds=12), **own),
            5: running(
                Stage.QUEUE, since=NOW - timedelta(seconds=3), client="[2001:db8::7]:99", release=None
            ),
        },
        recent={
            1: first,
            2: attrs.evolve(first, source=Source.HIT, ended=NOW - timedelta(seconds=20), compile_s=0.0),
            3: ended(
                Outcome.REFUSED,
                server=8,
                ended=NOW - timedelta(seconds=10),
                rejection=RejectReason.QUEUE_LENGTH,
                source=None,
            ),
        },
        history={begin - 70: Interval(1, 0, 0), begin - 20: Interval(4, 2, 2), begin - 10: Interval(1, 0, 1)},
    )


def seen(state: LiveState, *, user: str = "me", may_command: bool = True, socket: Path = SOCKET) -> Seen:
    return Seen(user, socket, may_command, update_info(Update(NOW, state)))
