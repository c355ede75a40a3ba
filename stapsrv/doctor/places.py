"""The user, and the directories and file systems that a server needs."""

from __future__ import annotations

import grp
import os
import pwd
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from stapsrv.compile.engine.tmpfs import find_memory_directory
from stapsrv.config.global_settings import GlobalSettings, can_write
from stapsrv.config.log_format import LogFormat
from stapsrv.control.client.accounts import GROUP
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, ok, warning
from stapsrv.observe.sinks import stream_descriptor

_MIB = 1024 * 1024
_SCARCE_BYTES = 512 * _MIB
"""Some hundred modules in stap's cache, or a few compiles side by side."""
_LEAST_BYTES = 64 * _MIB
"""One compile's temporary files, several times over."""
_OTHERS_MAY_WRITE = 0o002
_STICKY = 0o1000


async def check_user(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Who is the user, and in which group?"""
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
        yield ok("user", f"{patient.user}, in group {GROUP}")
    else:
        yield warning(
            "user",
            f"{patient.user} is not in group {GROUP}, so root starts no servers as this user",
            f"usermod -aG {GROUP} {patient.user}",
        )


async def check_directories(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Are the directories there, or can they be made, and can only the right people write to them?"""
    settings = patient.settings
    yield _readable("configuration", settings.config_path)
    yield _writable("state", settings.stat_path, "STAT_PATH")
    if _writes_log(settings):
        yield _writable("log", settings.log_file, "LOG_FILE")
    yield _writable("stap's directory", patient.state, "SYSTEMTAP_DIR")
    yield _writable("temporary directory", Path(tempfile.gettempdir()), "TMPDIR")


async def check_space(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Is there room for a compile, a cache and a log?"""
    places = {
        "room for stap's cache": patient.state,
        "room for compiles": find_memory_directory(patient.environ, patient.settings.tuning)
        or Path(tempfile.gettempdir()),
    }
    if _writes_log(patient.settings):
        places["room for logs"] = patient.settings.log_file.parent
    for question, place in places.items():
        yield _room(question, place)


def _writes_log(settings: GlobalSettings) -> bool:
    """Whether the log is a file, and neither a stream nor the journal."""
    return settings.log_format is not LogFormat.JOURNAL and stream_descriptor(settings.log_file) is None


def _room(question: str, place: Path) -> Finding:
    existing = _existing(place)
    try:
        figures = os.statvfs(existing)
    except OSError as exc:
        return failure(question, f"{existing}: {exc.strerror}")
    free = figures.f_bavail * figures.f_frsize
    said = f"{free // _MIB} MiB are free in {existing}"
    if figures.f_files and not figures.f_favail:
        return failure(question, f"no file can be made in {existing}: it has no inodes left", "remove files")
    if free < _LEAST_BYTES:
        return failure(question, said, "make room: requests fail when it is full")
    return warning(question, said, "make room") if free < _SCARCE_BYTES else ok(question, said)


def _readable(question: str, place: Path) -> Finding:
    if not place.exists():
        return ok(question, f"{place} is not there: one server for this host's kernel is started by default")
    if not os.access(place, os.R_OK | os.X_OK):
        return failure(question, f"{place} cannot be read", f"chmod o+rx {place}")
    return next(_exposed(question, place), ok(question, f"{place} can be read"))


def _writable(question: str, place: Path, variable: str) -> Finding:
    if not can_write(place):
        owner = _owner(_existing(place))
        return failure(
            question,
            f"{place} cannot be written; {_existing(place)} belongs to {owner}",
            f"let the server's user write there, or give another place with {variable}",
        )
    said = f"{place} can be written" if place.exists() else f"{place} can be made"
    return next(_exposed(question, place), ok(question, said))


def _exposed(question: str, place: Path) -> Iterator[Finding]:
    """Give a failure if everybody may replace what is in a directory, or write to a file."""
    if place.exists():
        mode = place.stat().st_mode
        if mode & _OTHERS_MAY_WRITE and not mode & _STICKY:
            yield failure(question, f"everybody may write to {place}", f"chmod o-w {place}")


def _existing(place: Path) -> Path:
    return next(path for path in (place, *place.absolute().parents) if path.exists())


def _owner(place: Path) -> str:
    uid = place.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
