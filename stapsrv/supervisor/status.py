"""Snapshots of what is hosted: for ``status``, for programs, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import attrs

from stapsrv.compile.engine.base import EngineStatus
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
    """A server's work at one moment, counted since it last started."""

    workers: int = 0  # requests that may compile at the same time
    running: int = 0
    queued: int = 0
    done: int = 0  # requests answered, whatever stap said of them, and those that got no answer of stap's
    failed: int = 0
    certificate_expires: datetime | None = None
    certificate_serial: str | None = None  # hex pairs, as clients announce and take it
    certificate_sha256: str | None = None  # its fingerprint, in hex pairs
    connections: int = 0  # open ones, whatever they are doing
    refusals: Mapping[RejectReason, int] = attrs.field(factory=dict)
    releases: tuple[ReleaseStatus, ...] = ()
    recent: RecentTimes = attrs.field(factory=RecentTimes)
    cache: CacheCounts = attrs.field(factory=CacheCounts)
    engine: EngineStatus | None = None  # None where this host compiles


@attrs.frozen(kw_only=True)
class ServerStatus:
    """One server at one moment."""

    id: int  # what ``status`` prints as PID and ``-p`` takes; no other process or server has it
    nickname: str
    settings: ServerSettings  # as they were asked for: a port of 0 stays 0 here
    origin: str | None  # its configuration file, or None for a server that was asked for
    wanted: Wanted
    state: State
    since: datetime
    reason: str | None  # why it is backing off or has failed
    port: int | None  # where it listens, or last listened
    work: ServerWork


@attrs.frozen(kw_only=True)
class SupervisorStatus:
    """A supervisor and its servers, by id, at one moment."""

    pid: int
    user: str
    version: str
    stap_version: str
    sandbox: str  # the name of the mechanism, or ``off``
    # The better mechanisms that are installed and do not work, a line each.
    sandbox_failures: tuple[str, ...] = ()
    containment: str  # how a compile's process tree is held together
    cgroup: str | None  # the parent of compiles' control groups; None where the host grants none
    since: datetime
    compiles: int
    max_compiles: int
    refused: tuple[str, ...] = ()  # why configured servers are not hosted, a line each
    scripts: Mapping[str, Mapping[str, int]] = attrs.field(factory=dict)  # by release and verdict
    new_releases: tuple[str, ...] = ()  # of kernels: they were installed since the start
    servers: tuple[ServerStatus, ...]
