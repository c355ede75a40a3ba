"""What the host provides: programs, a clock that is right, isolation, open files."""

from __future__ import annotations

import ctypes
import resource
import shutil
from collections.abc import AsyncIterator

from stapsrv.compile.engine.installed_options import InstalledOptions
from stapsrv.compile.engine.stap import find_stap
from stapsrv.config.tuning import BY_ATTRIBUTE
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, ok, warning
from stapsrv.errors import TranslatorError
from stapsrv.process import ExitReason, run_process_tree
from stapsrv.sandbox.detect import NAMESPACES_REMEDY
from stapsrv.supervisor.runtime import open_runtime
from stapsrv.system.rlimits import affordable_connections

_ANSWER_S = 20.0
# More than ``struct timex`` has on any Linux; with ``modes`` 0 it is only read (adjtimex(2)).
_TIMEX_BYTES = 256
# ``TIME_ERROR``: the clock is not synchronised.
_TIME_ERROR = 5


async def check_stap(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that stap is there, and prints its version and its options."""
    stap = await find_stap(context.environ)
    await InstalledOptions.read(stap, context.environ)
    yield ok("stap", f"{stap.path}, version {stap.version}")


async def check_tools(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that the compiler, make and NSS's tools are there and run."""
    for tool in ("gcc", "make"):
        yield await _check_tool(tool, tool, context, "--version")
    for tool in ("certutil", "pk12util"):
        yield await _check_tool(tool, "libnss3-tools", context)


async def _check_tool(tool: str, package: str, context: DoctorContext, *arguments: str) -> Finding:
    path = shutil.which(tool, path=context.environ.get("PATH"))
    remedy = f"install it (Debian: {package})"
    if path is None:
        return failure(tool, "was not found on the path", remedy)
    if not arguments:
        return ok(tool, path)
    try:
        result = await run_process_tree([path, *arguments], deadline_s=_ANSWER_S)
    except TranslatorError as exc:
        return failure(tool, f"{path} {exc.problem}", remedy)
    if result.exit_reason is not ExitReason.EXITED or result.status != 0:
        return failure(tool, f"{path} {' '.join(arguments)} does not answer", remedy)
    text = result.stdout.decode("utf-8", "replace").partition("\n")[0]
    return ok(tool, f"{path}: {text}")


async def check_clock(_patient: DoctorContext) -> AsyncIterator[Finding]:
    """Check that the clock is synchronised: certificates are judged by it."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state < 0:
        yield warning("clock", "the kernel does not say whether it is synchronised")
    elif state == _TIME_ERROR:
        yield warning(
            "clock",
            "is not synchronised; clients refuse a certificate that is not valid by theirs",
            "run systemd-timesyncd, chrony or ntpd on this host",
        )
    else:
        yield ok("clock", "is synchronised")


async def check_containment(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that the host allows isolation of requests (namespaces, Landlock) and control groups."""
    async with open_runtime(context.environ, tuning=context.settings.tuning) as runtime:
        sandbox = runtime.engine.sandbox
    if sandbox.backend is None:
        yield warning(
            "containment", "is off: requests can read whatever the server's user can", "take SANDBOX=off back"
        )
    else:
        for failed in sandbox.failures:
            yield warning(
                "containment",
                f"a better way is installed and does not work here: {failed}",
                NAMESPACES_REMEDY,
            )
        yield ok("containment", f"requests are isolated by {sandbox.name}")
        shown = ", ".join(("/usr", "/opt", *context.settings.tuning.effective("sandbox_read")))
        yield ok("user programs", f"compiles see those below {shown}; SANDBOX_READ shows further paths")
    yield ok("control groups", sandbox.cgroup or "none is delegated to this user: requests have limits only")


async def check_files(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that a supervisor may open as many files as the configured connections need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = [settings.limits.connections for settings in context.servers]
    wanted = context.settings.tuning.get("total_connections") or max(
        limits, default=BY_ATTRIBUTE["connections"].default
    )
    affordable = affordable_connections(hard) if hard != resource.RLIM_INFINITY else wanted
    text = f"{'any number' if hard == resource.RLIM_INFINITY else hard} may be open"
    if affordable < wanted:
        yield failure(
            "open files",
            f"{text}, enough for {affordable} connections of {wanted}",
            "raise the limit: LimitNOFILE= of the systemd unit, or ulimit -Hn",
        )
    else:
        yield ok("open files", f"{text}, enough for {wanted} connections")
