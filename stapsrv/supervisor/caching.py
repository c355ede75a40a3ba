"""The result cache of this process: opened with it, watched over as long as it lives."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial

import anyio
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache import ResultCache
from stapsrv.compile.grounds import Grounds
from stapsrv.compile.premises import Surroundings
from stapsrv.compile.store import RESULTS_DIRECTORY, Store
from stapsrv.compile.translator import StapProgram
from stapsrv.config.tunables import Tuning
from stapsrv.errors import ConfigError
from stapsrv.filework import FileWork
from stapsrv.identity.certificate import systemtap_directory


@contextlib.asynccontextmanager
async def open_cache(
    stap: StapProgram, environ: Mapping[str, str], tuning: Tuning, log: Log
) -> AsyncIterator[ResultCache | None]:
    """Have a result cache while the block runs; None, and a line in the log, where there can be none."""
    try:
        store = await FileWork().run(partial(open_store, environ, tuning))
        grounds = Grounds(log=log)
    except (ConfigError, OSError) as exc:
        log.warning("cache.unusable", reason=exc)
        yield None
        return
    contained = str(tuning.effective("sandbox"))
    surroundings = Surroundings(stap, environ, systemtap_directory(environ), contained=contained)
    if surroundings.fault is not None:
        log.warning("cache.idle", reason=surroundings.fault)
    with contextlib.closing(grounds):
        async with anyio.create_task_group() as watching:
            watching.start_soon(grounds.run)
            yield ResultCache(surroundings, grounds, store, log=log)
            watching.cancel_scope.cancel()


def open_store(environ: Mapping[str, str], tuning: Tuning) -> Store:
    """Open the directory of results.

    Raises:
        ConfigError: it cannot be used.
    """
    return Store(
        systemtap_directory(environ) / RESULTS_DIRECTORY,
        max_bytes=tuning.effective("result_cache_bytes"),
        max_age_s=tuning.effective("result_cache_s"),
    )
