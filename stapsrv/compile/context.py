"""The context that sessions of one server share: its options, kernels, engine and identity."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.activity import Activity
from stapsrv.compile.engine.base import RemoteEngine
from stapsrv.compile.engine.cached import CachedEngine
from stapsrv.compile.engine.installed_options import InstalledOptions
from stapsrv.compile.engine.signing import KernelSigner
from stapsrv.compile.health import ReleaseHealth
from stapsrv.compile.memory import MemoryBudget
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.rejections import Rejections
from stapsrv.compile.stats import LatencyWindow, ProcessCounters
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.identity.store import LiveIdentity


@attrs.define
class RequestCounts:
    """The requests of one server that have ended so far."""

    done: int = 0
    failed: int = 0


@attrs.frozen(kw_only=True)
class CompileService:
    """The context of one server's sessions; all servers share ``counters`` and ``activity``."""

    id: int = 0  # of the server, in its supervisor
    settings: ServerSettings
    releases: Mapping[str, ServedRelease]  # by name
    version: str  # the protocol version in responses: that of the installed stap
    options: InstalledOptions  # of that stap
    engine: CachedEngine  # open as long as there are sessions
    elsewhere: RemoteEngine | None = None  # the one behind it, where other hosts compile
    pool: WorkerPool  # the engine's
    identity: LiveIdentity
    kernel_signer: KernelSigner
    request_memory: MemoryBudget
    log: Log
    release_health: Mapping[str, ReleaseHealth] = attrs.field(factory=dict)  # of those that are warmed up
    counts: RequestCounts = attrs.field(factory=RequestCounts)
    latencies: LatencyWindow = attrs.field(factory=LatencyWindow)
    counters: ProcessCounters = attrs.field(factory=ProcessCounters)
    activity: Activity = attrs.field(factory=Activity)
    rejections: Rejections = attrs.field(
        default=attrs.Factory(lambda self: Rejections(self.log, self.counters.refusals), takes_self=True)
    )
