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
        done: requests answered, whatever stap said of them.
        failed: requests that got no answer of stap's.
        connections: open ones, whatever they are doing.
        refusals: rejected connections and requests, by reason.
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
        settings: as they were asked for (a port of 0 stays 0 here).
        origin: its configuration file, or None for a server that was asked for.
        reason: why it is backing off or has failed, or None.
        port: where it listens, or last listened; None before the first time.
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
    """A supervisor and its servers, by id, at one moment.

    Attributes:
        sandbox: the name of the mechanism, or ``off``.
        containment: how a compile's process tree is held together.
        cgroup: the parent of compiles' control groups; None where the host grants none.
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
