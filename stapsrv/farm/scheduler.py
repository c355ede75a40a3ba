"""The scheduler of a farm: Dask's own, with the settings that a farm needs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import attrs
import dask
from distributed import Scheduler
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.errors import ConfigError
from stapsrv.farm.security import FarmCredentials, farm_security

# A job runs three times at most: it is given up when so many workers have died of it, and one more.
_ALLOWED_DEATHS = 2
_CLOSE_S = 5.0
_NOWHERE = "127.0.0.1:0"
SETTINGS: dict[str, Any] = {
    # A host that is cut off is missed after so long: its jobs run elsewhere.
    "distributed.scheduler.worker-ttl": "30s",
    "distributed.comm.timeouts.tcp": "15s",
    "distributed.comm.timeouts.connect": "10s",
    # Of a compile, until some have been seen; decides how jobs are spread.
    "distributed.scheduler.unknown-task-duration": "5s",
    "distributed.scheduler.active-memory-manager.start": False,
    # Nobody in a farm needs these, and each runs what it is sent, or reads or ends all.
    "distributed.scheduler.blocked-handlers": [
        *("run_function", "register_scheduler_plugin", "unregister_scheduler_plugin"),
        *("register_worker_plugin", "unregister_worker_plugin", "register_nanny_plugin"),
        *("unregister_nanny_plugin", "broadcast", "proxy", "restart", "restart_workers", "terminate"),
        *("scatter", "update_data", "replicate", "rebalance", "set_metadata", "set_restrictions"),
        *("dump_cluster_state_to_url", "get_cluster_state", "benchmark_hardware", "start_task_metadata"),
    ],
}


@attrs.frozen(kw_only=True)
class SchedulerOptions:
    """The options that a scheduler is started with."""

    listen: str  # tls://ADDRESS:PORT, or tcp:// at a loopback address
    credentials: FarmCredentials | None = None  # None for tcp:// alone
    # Of Dask's own page, such as 127.0.0.1:8787, which shows all jobs to everybody; by default there is none.
    dashboard: str | None = None


async def run_scheduler(options: SchedulerOptions, *, log: Log) -> None:
    """Schedule the jobs of a farm until cancelled; on asyncio.

    Nothing is kept over its end: the servers submit again what they wait for, to the next one.

    Raises:
        ConfigError: the address or the credentials cannot be used.
    """
    async with open_scheduler(options) as scheduler:
        log.info("farm.scheduler", address=scheduler.address)
        await anyio.sleep_forever()


@contextlib.asynccontextmanager
async def open_scheduler(options: SchedulerOptions) -> AsyncIterator[Scheduler]:
    """Schedule while the block runs (see :func:`run_scheduler`)."""
    security = farm_security(options.credentials, address=options.listen)
    with dask.config.set(SETTINGS):
        try:
            scheduler = Scheduler(
                host=options.listen,
                security=security,
                allowed_failures=_ALLOWED_DEATHS,
                dashboard=options.dashboard is not None,
                dashboard_address=options.dashboard or _NOWHERE,
            )
            if options.dashboard is None:
                # Dask opens one in any case.
                scheduler.http_server.stop()
            await scheduler
        except (OSError, RuntimeError, ValueError) as exc:
            # Dask says that it did not start, and why below.
            reason = exc.__cause__ or exc
            problem = getattr(reason, "strerror", None) or str(reason)
            remedy = "choose another address and port of this host"
            raise ConfigError(
                f"cannot be listened at ({problem})", where=options.listen, remedy=remedy
            ) from exc
        try:
            yield scheduler
        finally:
            # Where connections are just made, Dask's own timeouts and its end can get in each other's way.
            with anyio.move_on_after(_CLOSE_S, shield=True), contextlib.suppress(OSError, RuntimeError):
                await scheduler.close(reason="the scheduler was told to end")
