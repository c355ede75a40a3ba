"""The ways to contain a program: each turns a mount plan and a command into a longer command.

bubblewrap makes namespaces: a path that the plan does not name does not exist, processes see only their own
kind, and all end with the first of them, however the server ends. With Landlock the host's files are all
there, but cannot be opened; the launcher's keeper ends what a program started, unless that ends the keeper
first (before Linux 6.12 nothing forbids it).
"""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from stapsrv.sandbox.mount_plan import Access, MountPlan

_LAUNCHER = Path(__file__).with_name("landlock_launcher.py")
_DEATH_SIGNAL = ("setpriv", "--pdeathsig", "KILL", "--")


class Backend(enum.Enum):
    """How programs are contained, the best first."""

    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"

    @property
    def has_namespaces(self) -> bool:
        """Whether it can hide a part of a directory that it shows, and all processes end with the first."""
        return self is Backend.BUBBLEWRAP

    def command(self, view: MountPlan, command: Sequence[str | bytes]) -> list[str | bytes]:
        """Return the command that runs ``command`` with that view."""
        return [*_COMMANDS[self](view), *command]


def bare_python() -> tuple[str, ...]:
    """Return how to start Python without the modules of any site, in 8 ms."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return (base, "-I", "-S", "-E", "-B")


def _bubblewrap(view: MountPlan) -> Iterator[str]:
    # A bubblewrap that dies before its inner process has arranged to die with it leaves that one to itself.
    yield from _death_of_all()
    # The signal that asks a compile to end goes to the whole session. bubblewrap's own two processes are not
    # meant: they would take the compile with them before it has tidied up.
    yield from ("env", f"--chdir={view.directory}", "--ignore-signal=TERM", "bwrap", "--die-with-parent")
    yield from ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
    if not view.network:
        yield "--unshare-net"
    # Before the places: one may be below /dev, in memory.
    yield from ("--proc", "/proc", "--dev", "/dev")
    for place in view.places:
        path = str(place.path)
        match place.access:
            case Access.READ:
                yield from ("--ro-bind", path, path)
            case Access.WRITE:
                yield from ("--bind", path, path)
            case Access.EMPTY_DIRECTORY:
                yield from ("--tmpfs", path)
            case Access.EMPTY_FILE:
                yield from ("--ro-bind", "/dev/null", path)
    for link in view.links:
        yield from ("--symlink", link.target, str(link.path))
    # Whatever of this is a file system in memory takes no data.
    for memory in (Path("/"), Path("/dev"), *_empty_directories(view)):
        yield from ("--remount-ro", str(memory))
    yield from ("--chdir", str(view.directory), "--", "env", "--default-signal=TERM", "--")


def _death_of_all() -> Iterator[str]:
    """Have the whole process group die with this process: its signal means to ``timeout`` that time is up."""
    yield from ("setpriv", "--pdeathsig", "ALRM", "--")
    if os.access(".", os.R_OK | os.X_OK):
        # Nothing begins if this process died before that was arranged. No namespace is entered: only its
        # working directory, which a process that is no more does not have.
        yield from ("nsenter", f"--target={os.getpid()}", "--wd", "--")
    yield from ("timeout", "--signal=KILL", "0")


def _landlock(view: MountPlan) -> Iterator[str]:
    yield from (*_DEATH_SIGNAL, *bare_python(), str(_LAUNCHER), "network" if view.network else "no-network")
    for place in view.places:
        if not place.access.is_hidden:
            yield from (place.access.name, str(place.path))
    yield "--"


def _empty_directories(view: MountPlan) -> Iterator[Path]:
    return (place.path for place in view.places if place.access is Access.EMPTY_DIRECTORY)


_COMMANDS: Mapping[Backend, Callable[[MountPlan], Iterator[str]]] = {
    Backend.BUBBLEWRAP: _bubblewrap,
    Backend.LANDLOCK: _landlock,
}
