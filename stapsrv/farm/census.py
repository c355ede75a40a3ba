"""Asks the members of a farm about themselves: versions, clock, certificate.

A node states it as one of the metrics that Dask sends with each heartbeat; the scheduler is asked.
"""

from __future__ import annotations

import platform
import ssl
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import anyio
import attrs
from distributed.comm.core import connect
from distributed.core import send_recv

from stapsrv import __version__
from stapsrv.farm.offer import Nodes
from stapsrv.farm.security import FarmCredentials, farm_security
from stapsrv.text import printable, shortened

# The name of the metric.
FACTS = "stapsrv"
_CONNECT_S = 10.0
_ASK_S = 20.0
_TOPIC = "stapsrv-clock"
_SCHEDULER = "the scheduler"
_MAX_VERSION = 40
_PYTHON_PARTS = 3
# The scheduler's words for what differs at most between hosts of one farm.
_PACKAGES = {"stapsrv": "stapsrv", "distributed": "Dask", "python": "Python"}


@attrs.frozen(kw_only=True)
class Member:
    """The scheduler, or a node."""

    name: str
    versions: Mapping[str, str]  # of stapsrv, Dask and Python, as far as it says
    ahead_s: float | None  # of its clock before this host's
    certificate_until: datetime | None


@attrs.frozen
class Census:
    """A farm at one moment; the scheduler is the first member."""

    members: tuple[Member, ...]
    nodes: Nodes


def own_versions() -> dict[str, str]:
    """Return the versions of this process."""
    return {"stapsrv": __version__, "Dask": version("distributed"), "Python": platform.python_version()}


def own_facts(certificate_until: datetime | None) -> dict[str, object]:
    """Return what this process says of itself, at this moment."""
    until = None if certificate_until is None else certificate_until.timestamp()
    return {"versions": own_versions(), "clock": time.time(), "certificate_until": until}


async def take_census(address: str, credentials: FarmCredentials | None) -> Census:
    """Ask the scheduler of a farm, within half a minute; on asyncio.

    Raises:
        ConfigError: this host's certificate or key cannot be used.
        OSError: the scheduler is not reached, or does not answer in time.
    """
    security = farm_security(credentials, address=address)
    comm = await connect(address, timeout=_CONNECT_S, **security.get_connection_args("client"))
    try:
        with anyio.fail_after(_ASK_S):
            described: Any = await send_recv(comm, op="identity", n_workers=-1)
            versions: Any = await send_recv(comm, op="versions", packages=["stapsrv"])
            # An event has the time of the scheduler.
            before = time.time()
            await send_recv(comm, op="log_event", topic=_TOPIC, msg={})
            events: Any = await send_recv(comm, op="events", topic=_TOPIC)
            ahead_s = events[-1][0] - (before + time.time()) / 2
        scheduler = Member(
            name=_SCHEDULER,
            versions=_versions_in(versions),
            ahead_s=ahead_s,
            certificate_until=_end_of(comm.extra_info.get("peercert")),
        )
    finally:
        comm.abort()
    workers = described.get("workers")
    return Census((scheduler, *nodes_in(workers, ahead_s=ahead_s)), Nodes.parse(workers))


def nodes_in(workers: object, *, ahead_s: float) -> Iterator[Member]:
    """Yield what nodes say of themselves in the scheduler's description, whose clock is ``ahead_s`` ahead."""
    for facts in workers.values() if isinstance(workers, Mapping) else ():
        if not isinstance(facts, Mapping):
            continue
        metrics = facts.get("metrics")
        said = metrics.get(FACTS) if isinstance(metrics, Mapping) else None
        said = said if isinstance(said, Mapping) else {}
        clock, seen, until = said.get("clock"), facts.get("last_seen"), said.get("certificate_until")
        ahead: float | None = None
        if isinstance(clock, float) and isinstance(seen, float):
            ahead = clock - seen + ahead_s
        yield Member(
            name=shortened(printable(str(facts.get("name"))), _MAX_VERSION),
            versions=_strings(said.get("versions")),
            ahead_s=ahead,
            certificate_until=_moment(until),
        )


def _versions_in(answer: object) -> dict[str, str]:
    packages = answer.get("packages") if isinstance(answer, Mapping) else None
    found = {_PACKAGES[name]: text for name, text in _strings(packages).items() if name in _PACKAGES}
    if "Python" in found:
        # As in 3.11.2.final.0.
        found["Python"] = ".".join(found["Python"].split(".")[:_PYTHON_PARTS])
    return found


def _strings(said: object) -> dict[str, str]:
    items = said.items() if isinstance(said, Mapping) else ()
    return {
        str(name): shortened(printable(text), _MAX_VERSION) for name, text in items if isinstance(text, str)
    }


def _moment(seconds: object) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, (int, float)) else None
    except (ValueError, OverflowError, OSError):
        return None


def _end_of(certificate: object) -> datetime | None:
    end = certificate.get("notAfter") if isinstance(certificate, Mapping) else None
    return _moment(ssl.cert_time_to_seconds(end)) if isinstance(end, str) else None
