"""Chooses a server's engine: this host's, or another by its entry point."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import cast

from stapsrv.compile.engine.base import EngineFactory, EngineHost, RemoteEngine
from stapsrv.config.compilation import LOCAL
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError

GROUP = "stapsrv.engines"


async def open_engine(settings: ServerSettings, host: EngineHost) -> RemoteEngine | None:
    """Return the engine that a server's settings name; None for the one of this host.

    Raises:
        ConfigError: it is not installed, cannot be loaded, or cannot serve these settings.
    """
    name = settings.compilation.engine
    if name == LOCAL:
        return None
    found = next(iter(entry_points(group=GROUP, name=name)), None)
    where = f"ENGINE={name}"
    if found is None:
        known = ", ".join(sorted({LOCAL, *(entry.name for entry in entry_points(group=GROUP))}))
        raise ConfigError("is not installed", where=where, remedy=f"take one of {known}, or install it")
    try:
        factory = cast("EngineFactory", found.load())
    except ImportError as exc:
        remedy = "install what it needs (for dask: pip install 'stapsrv[farm]')"
        raise ConfigError(f"cannot be loaded: {exc}", where=where, remedy=remedy) from exc
    return await factory(settings, host)
