"""What the sessions of one server share: its options, its kernels, where it compiles, and who it is."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.cache.result_cache import ResultCache
from stapsrv.compile.engine.base import Engine
from stapsrv.compile.engine.signing import KernelSigner
from stapsrv.compile.health import ReleaseHealth
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.rejections import Rejections
from stapsrv.compile.single_flight import SingleFlight
from stapsrv.compile.stats import CacheCounts, LatencyWindow, ProcessCounters
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings


@attrs.define
class RequestCounts:
    """What became of the requests of one server so far."""

    accepted: int = 0
    done: int = 0
    failed: int = 0


class ServedIdentity(Protocol):
    """Who a server is, as far as its connections and its status need to know."""

    @property
    def context(self) -> ssl.SSLContext:
        """What handshakes are made with."""

    @property
    def not_after(self) -> datetime:
        """The end of the certificate's validity."""

    def sign(self, module: bytes) -> bytes:
        """Return the signature of a module by the certificate's key; takes some milliseconds."""


class CurrentIdentity(Protocol):
    """Who a server is at each moment: certificates are renewed."""

    @property
    def kept(self) -> ServedIdentity:
        """Who it was when that was looked at last."""

    async def current(self) -> ServedIdentity:
        """Return who it is for a new connection; takes no longer than a few seconds."""


@attrs.frozen(kw_only=True)
class CompileService:
    """What the sessions of one server share.

    Attributes:
        settings: the server's options and limits.
        releases: what it compiles for, by name.
        standings: what is known of them, by name; only of those that are looked after.
        version: the protocol version in answers: that of the installed stap.
        engine: where compiles run.
        pool: who may run one.
        identity: who the server is; a renewed certificate is shown from the next handshake on.
        kernel_signer: signs modules for kernels under secure boot.
        log: the server's own.
        counts: kept by the sessions.
        flights: the compiles that its sessions wait for; open as long as there are sessions.
        recent: likewise, what the last requests took.
        cache: results that are known, shared by the servers of a process; None to compile each time.
        cache_counts: what it did for this server.
        tally: likewise, of all servers of this process.
        refusals: what was turned away, likewise of this server.
    """

    settings: ServerSettings
    releases: Mapping[str, ServedRelease]
    version: str
    engine: Engine
    pool: WorkerPool
    identity: CurrentIdentity
    kernel_signer: KernelSigner
    log: Log
    standings: Mapping[str, ReleaseHealth] = attrs.field(factory=dict)
    counts: RequestCounts = attrs.field(factory=RequestCounts)
    flights: SingleFlight[CacheEntry] = attrs.field(factory=SingleFlight)
    recent: LatencyWindow = attrs.field(factory=LatencyWindow)
    cache: ResultCache | None = None
    cache_counts: CacheCounts = attrs.field(factory=CacheCounts)
    tally: ProcessCounters = attrs.field(factory=ProcessCounters)
    refusals: Rejections = attrs.field(
        default=attrs.Factory(lambda self: Rejections(self.log, self.tally.refusals), takes_self=True)
    )
