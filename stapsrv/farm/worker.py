"""A node of a farm: offers the releases that it can compile for, and compiles for the servers of the farm."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.tuning import NOTHING_SET, Tuning
from stapsrv.farm.security import FarmCredentials


@attrs.frozen(kw_only=True)
class WorkerOptions:
    """What a node is started with.

    What is a path of this host is the node's own setting, never a job's; so are the limits of ``tuning``,
    which bound those that jobs state.
    """

    scheduler: str  # tls://HOST:PORT, or tcp:// at a loopback address
    credentials: FarmCredentials | None = None  # None for tcp:// alone
    name: str | None = None  # unique in the farm; by default made of the host's name
    slots: int | None = None  # compiles at the same time; by default one for each core
    releases: tuple[str, ...] = ()  # or absolute build trees; by default all that are installed
    include: tuple[str, ...] = ()  # further directories with tapsets
    runtime: str | None = None  # SystemTap's runtime, if another than the installed one
    tuning: Tuning = NOTHING_SET
    environ: Mapping[str, str]  # that this program was started with, for stap


async def run_worker(options: WorkerOptions, *, log: Log) -> None:
    """Offer this host's releases to a farm, and compile, until cancelled; on asyncio.

    Raises:
        ConfigError: stap, a release, the scheduler's address or the credentials cannot be used.

    Cancellation: no new job is taken; what runs has the time of ``DRAIN_TIMEOUT``, then it is given back.
    """
    raise NotImplementedError(options.scheduler, log)
