"""What the host grants: its clock, a way to hold requests in, open files."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import AsyncIterator

from stapsrv.config.tunables import BY_ATTRIBUTE
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, ok, warning
from stapsrv.supervisor.runtime import open_host
from stapsrv.system.rlimits import affordable_connections

_TIMEX_BYTES = 256
"""More than ``struct timex`` has on any Linux; with ``modes`` 0 it is only read (adjtimex(2))."""
_TIME_ERROR = 5
"""``TIME_ERROR``: nobody keeps the clock right."""


async def check_clock(_patient: DoctorContext) -> AsyncIterator[Finding]:
    """Does somebody keep the clock right? Certificates are judged by it."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state < 0:
        yield warning("clock", "the kernel does not tell whether it is synchronised")
    elif state == _TIME_ERROR:
        yield warning(
            "clock",
            "is not synchronised; clients refuse a certificate that is not valid by theirs",
            "run systemd-timesyncd, chrony or ntpd on this host",
        )
    else:
        yield ok("clock", "is synchronised")


async def check_containment(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Does the host grant a way to hold requests in (namespaces, Landlock), and control groups?"""
    async with open_host(patient.environ, tuning=patient.settings.tuning) as host:
        sandbox = host.engine.sandbox
    if sandbox.backend is None:
        yield warning(
            "containment",
            "is off: requests can read whatever the server's user can",
            "take SANDBOX=off back",
        )
    else:
        yield ok("containment", f"requests are held in by {sandbox.name}")
    yield ok("control groups", sandbox.cgroup or "none is delegated to this user: requests have limits only")


async def check_files(patient: DoctorContext) -> AsyncIterator[Finding]:
    """May a supervisor open as many files as connections are wanted?"""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = [settings.limits.connections for settings in patient.servers]
    wanted = patient.settings.tuning.get("total_connections") or max(
        limits, default=BY_ATTRIBUTE["connections"].default
    )
    affordable = affordable_connections(hard) if hard != resource.RLIM_INFINITY else wanted
    said = f"{'any number' if hard == resource.RLIM_INFINITY else hard} may be open"
    if affordable < wanted:
        yield failure(
            "open files",
            f"{said}, enough for {affordable} connections of {wanted}",
            "raise the limit: LimitNOFILE= of the systemd unit, or ulimit -Hn",
        )
    else:
        yield ok("open files", f"{said}, enough for {wanted} connections")
