"""Having a process monitored, or not."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.observe.door import Door
from stapsrv.observe.facts import Look


@contextlib.asynccontextmanager
async def monitored(door: Door | None, look: Look, *, log: Log) -> AsyncIterator[None]:
    """Have metrics and health told at ``door`` for as long as the block runs; nothing without one."""
    if door is None:
        yield
        return
    from stapsrv.observe.monitor import Monitor  # noqa: PLC0415 - slow to load, and most have no use for it

    log.info("metrics.listening", address=door.name)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Monitor(door.listener, look, log=log).run)
        yield
        tasks.cancel_scope.cancel()
