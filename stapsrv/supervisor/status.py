"""Snapshots of what is hosted: for ``status``, for programs, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import attrs

from stapsrv.compile.health import Health
from stapsrv.compile.stats import CacheCounts, RecentTimes
from stapsrv.config.settings import ServerSettings
from stapsrv.rejection import RejectReason
from stapsrv.supervisor.lifecycle import State, Wanted


@attrs.frozen
class ReleaseStatus:
    """A kernel release that a server serves; ``reason`` is the compiler's first error if it is unhealthy."""

    name: str
    health: Health
    reason: str | None


@attrs.frozen(kw_only=True)
class ServerWork:
    """A server's work at one moment, counted since it last started.

    Attributes:
        running: requests that compile.
        queued: requests that wait for a worker.
        done: requests answered, whatever stap said of them.
        failed: requests that came to no answer of stap's.
        certificate_expires: the end of its certificate's validity, once it has one.
        connections: open ones, whatever they are doing.
        refusals: what was turned away, by reason.
        recent: what the last requests took.
        cache: what the result cache did.
    """

    running: int = 0
    queued: int = 0
    done: int = 0
    failed: int = 0
    certificate_expires: datetime | None = None
    connections: int = 0
    refusals: Mapping[RejectReason, int] = attrs.field(factory=dict)
    releases: tuple[ReleaseStatus, ...] = ()
    recent: RecentTimes = attrs.field(factory=RecentTimes)
    cache: CacheCounts = attrs.field(factory=CacheCounts)


# Of a server that is not there.
NO_WORK = ServerWork()


@attrs.frozen(kw_only=True)
class ServerStatus:
    """One server at one moment.

    Attributes:
        id: what ``status`` prints as PID and ``-p`` takes; no other process or server has it.
        nickname: the given one, else the id.
        settings: as it was asked for (a port of 0 stays 0 here).
        origin: the configuration file that it comes from, or None for one that was asked for.
        wanted: what the operator wants.
        state: what it is.
        since: when it came into that state.
        reason: why it is backing off or has failed, or None.
        port: the one that it listens on, or last listened on; None before the first time.
        work: what it does; nothing while nothing serves.
    """

    id: int
    nickname: str
    settings: ServerSettings
    origin: str | None
    wanted: Wanted
    state: State
    since: datetime
    reason: str | None
    port: int | None
    work: ServerWork


@attrs.frozen(kw_only=True)
class SupervisorStatus:
    """A supervisor and its servers at one moment.

    Attributes:
        pid: its process.
        user: the name of the user that it runs as.
        version: of this program.
        stap_version: of the translator.
        sandbox: what keeps compiles from the rest of the host: a mechanism's name, or ``off``.
        containment: how a compile's process tree is held together.
        cgroup: what compiles get control groups of their own from; None where the host grants none.
        since: when it started.
        compiles: requests that compile now, over all servers.
        max_compiles: the most that may.
        servers: in order of their ids.
    """

    pid: int
    user: str
    version: str
    stap_version: str
    sandbox: str
    containment: str
    cgroup: str | None
    since: datetime
    compiles: int
    max_compiles: int
    servers: tuple[ServerStatus, ...]
