"""The engine of a server, and the scripts it checks unasked: rows of :mod:`stapsrv.config.table`."""

from __future__ import annotations

from stapsrv.config import addresses
from stapsrv.config.kinds import ABSOLUTE_PATH, ENGINE, Kind, choice, duration
from stapsrv.config.setting import Group, Setting

LOCAL = "local"  # the engine of this host
_DIRECTORY = Kind("DIR", ABSOLUTE_PATH.parse, is_path=True)


class Compilation(Group):
    """The engine of a server, and the scripts that it compiles before anybody asks."""

    engine = Setting(
        "ENGINE",
        ENGINE,
        "where requests are compiled: local (this host), dask (the farm of FARM), or an installed engine",
        default=LOCAL,
        identifies=True,
    )
    farm = Setting[str | None](
        "FARM",
        Kind("ADDRESS", lambda text: str(addresses.parse_farm_address(text))),
        "the scheduler of the farm: tls://HOST:PORT, or tcp://127.0.0.1:PORT",
        default_text="none",
        identifies=True,
    )
    farm_ca = Setting[str | None](
        "FARM_CA", ABSOLUTE_PATH, "certificate of the farm's authority", default_text="none"
    )
    farm_cert = Setting[str | None](
        "FARM_CERT", ABSOLUTE_PATH, "certificate of this host of that authority", default_text="none"
    )
    farm_key = Setting[str | None](
        "FARM_KEY", ABSOLUTE_PATH, "private key of that certificate", default_text="none"
    )
    farm_fallback = Setting(
        "FARM_FALLBACK",
        choice("wait", "local", "refuse"),
        "what becomes of requests without the farm: they wait, are compiled on this host if it has the "
        "headers, or are refused",
        default="wait",
    )
    farm_wait_s = Setting(
        "FARM_WAIT",
        duration(),
        "how long a request waits for the farm's scheduler, and for workers that were there",
        default=60.0,
    )
    scripts = Setting[tuple[str, ...]](
        "SCRIPTS",
        _DIRECTORY,
        "a directory of scripts that are to compile for each release",
        array=True,
    )
