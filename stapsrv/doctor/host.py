"""Checks of what the host provides: programs, clock, isolation, open files, the user, directories, room."""

from __future__ import annotations

import ctypes
import grp
import os
import resource
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from stapsrv.compile.engine.installed_options import InstalledOptions
from stapsrv.compile.engine.stap import find_stap
from stapsrv.compile.engine.tmpfs import find_memory_directory
from stapsrv.config.global_settings import GlobalSettings, can_write
from stapsrv.config.kinds import LogFormat
from stapsrv.config.tuning import BY_ATTRIBUTE
from stapsrv.control.client.accounts import GROUP
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, ok, warning
from stapsrv.errors import TranslatorError
from stapsrv.identity.permissions import everybody_may_write
from stapsrv.observe.sinks import stream_descriptor
from stapsrv.process import ExitReason, run_process_tree
from stapsrv.sandbox.detect import NAMESPACES_REMEDY
from stapsrv.supervisor.runtime import open_runtime
from stapsrv.system.rlimits import affordable_connections

_ANSWER_S = 20.0
# More than ``struct timex`` has on any Linux; with ``modes`` 0 it is only read (adjtimex(2)).
_TIMEX_BYTES = 256
# ``TIME_ERROR``: the clock is not synchronised.
_TIME_ERROR = 5
_MIB = 1024 * 1024
# Some hundred modules in stap's cache, or a few compiles at once.
_SCARCE_BYTES = 512 * _MIB
# One compile's temporary files, several times over.
_MIN_BYTES = 64 * _MIB


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


async def check_clock(_context: DoctorContext) -> AsyncIterator[Finding]:
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


async def check_user(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check who the user is, and that the user is in the group of the servers."""
    if os.geteuid() == 0:
        yield failure("user", "no server runs as root", "name a user with -u")
        return
    try:
        members = grp.getgrnam(GROUP)
    except KeyError:
        yield warning("group", f"there is no group {GROUP}", f"groupadd --system {GROUP}")
        return
    groups = {os.getegid(), *os.getgroups()}
    if members.gr_gid in groups:
        yield ok("user", f"{context.user}, in group {GROUP}")
    else:
        yield warning(
            "user",
            f"{context.user} is not in group {GROUP}, so root starts no servers as this user",
            f"usermod -aG {GROUP} {context.user}",
        )


async def check_directories(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that the directories exist or can be made, and that not everybody can write to them."""
    settings = context.settings
    yield _readable("configuration", settings.config_path)
    yield _writable("state", settings.stat_path, "STAT_PATH")
    if _writes_log(settings):
        yield _writable("log", settings.log_file, "LOG_FILE")
    yield _writable("stap's directory", context.state, "SYSTEMTAP_DIR")
    yield _writable("temporary directory", Path(tempfile.gettempdir()), "TMPDIR")


async def check_space(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check that there is disk space for a compile, a cache and a log."""
    places = {
        "room for stap's cache": context.state,
        "room for compiles": find_memory_directory(context.environ, context.settings.tuning)
        or Path(tempfile.gettempdir()),
    }
    if _writes_log(context.settings):
        places["room for logs"] = context.settings.log_file.parent
    for question, path in places.items():
        yield _space(question, path)


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


def _writes_log(settings: GlobalSettings) -> bool:
    """Whether the log is a file, not a stream or the journal."""
    return settings.log_format is not LogFormat.JOURNAL and stream_descriptor(settings.log_file) is None


def _space(question: str, path: Path) -> Finding:
    existing = _existing(path)
    try:
        figures = os.statvfs(existing)
    except OSError as exc:
        return failure(question, f"{existing}: {exc.strerror}")
    free = figures.f_bavail * figures.f_frsize
    text = f"{free // _MIB} MiB are free in {existing}"
    # A file system without a fixed number of inodes (btrfs) reports none at all.
    if figures.f_files and not figures.f_favail:
        return failure(question, f"no file can be made in {existing}: it has no inodes left", "remove files")
    if free < _MIN_BYTES:
        return failure(question, text, "make room: requests fail when it is full")
    return warning(question, text, "make room") if free < _SCARCE_BYTES else ok(question, text)


def _readable(question: str, path: Path) -> Finding:
    if not path.exists():
        return ok(question, f"{path} is not there: by default one server for this host's kernel is started")
    if not os.access(path, os.R_OK | os.X_OK):
        return failure(question, f"{path} cannot be read", f"chmod o+rx {path}")
    return _unless_exposed(question, path, f"{path} can be read")


def _writable(question: str, path: Path, variable: str) -> Finding:
    if not can_write(path):
        owner = _owner(_existing(path))
        return failure(
            question,
            f"{path} cannot be written; {_existing(path)} belongs to {owner}",
            f"let the server's user write there, or name another one with {variable}",
        )
    return _unless_exposed(question, path, f"{path} can be {'written' if path.exists() else 'made'}")


def _unless_exposed(question: str, path: Path, answer: str) -> Finding:
    if everybody_may_write(path):
        return failure(question, f"everybody may write to {path}", f"chmod o-w {path}")
    return ok(question, answer)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)
