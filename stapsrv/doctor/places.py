"""Checks of the user, and of the directories and file systems that a server needs."""

from __future__ import annotations

import grp
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from stapsrv.compile.engine.tmpfs import find_memory_directory
from stapsrv.config.global_settings import GlobalSettings, can_write
from stapsrv.config.kinds import LogFormat
from stapsrv.control.client.accounts import GROUP
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, ok, warning
from stapsrv.identity.permissions import everybody_may_write
from stapsrv.observe.sinks import stream_descriptor

_MIB = 1024 * 1024
# Some hundred modules in stap's cache, or a few compiles at once.
_SCARCE_BYTES = 512 * _MIB
# One compile's temporary files, several times over.
_MIN_BYTES = 64 * _MIB


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
