"""The ways to contain a program: each turns a mount plan and a command into a longer command.

bubblewrap makes namespaces: a path that the plan does not name does not exist, processes see only their own
kind, and all end with the first of them, however the server ends. With Landlock the host's files are all
there, but cannot be opened; the launcher's keeper ends what a program started, unless that ends the keeper
first (before Linux 6.12 nothing forbids it).
"""

from __future__ import annotations

import enum
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from stapsrv.sandbox.mount_plan import Access, MountPlan

_LAUNCHER = Path(__file__).with_name("landlock_launcher.py")


class Backend(enum.Enum):
    """A way to contain programs, the best first."""

    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"

    @property
    def has_namespaces(self) -> bool:
        """Whether it can hide a part of a directory that it shows, and all processes end with the first."""
        return self is Backend.BUBBLEWRAP

    @property
    def is_installed(self) -> bool:
        """Whether its programs are there; the kernel may still refuse them what they need."""
        return self is not Backend.BUBBLEWRAP or shutil.which("bwrap") is not None

    def command(self, plan: MountPlan, command: Sequence[str | bytes]) -> list[str | bytes]:
        """Return the command that runs ``command`` with that plan."""
        wrapper = _bubblewrap(plan) if self is Backend.BUBBLEWRAP else _landlock(plan)
        return [*wrapper, *command]


def _bubblewrap(plan: MountPlan) -> Iterator[str]:
    # A bubblewrap that dies before its inner process has arranged to die with it leaves that one to itself.
    yield from _kill_group_with_parent()
    # The signal that asks a compile to end goes to the whole session. bubblewrap's own two processes ignore
    # it: they would take the compile with them before it has tidied up.
    yield from ("env", f"--chdir={plan.directory}", "--ignore-signal=TERM", "bwrap", "--die-with-parent")
    yield from ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
    if not plan.network:
        yield "--unshare-net"
    # Before the mounts of the plan: one may be below /dev, in memory.
    yield from ("--proc", "/proc", "--dev", "/dev")
    in_memory = ["/", "/dev"]
    for place, access in plan.mounts.items():
        path = str(place)
        match access:
            case Access.READ:
                yield from ("--ro-bind", path, path)
            case Access.WRITE:
                yield from ("--bind", path, path)
            case Access.EMPTY_DIRECTORY:
                in_memory.append(path)
                yield from ("--tmpfs", path)
            case Access.EMPTY_FILE:
                yield from ("--ro-bind", "/dev/null", path)
    for link in plan.links:
        yield from ("--symlink", link.target, str(link.path))
    # Else a program could fill the host's memory through them.
    for path in in_memory:
        yield from ("--remount-ro", path)
    yield from ("--chdir", str(plan.directory), "--", "env", "--default-signal=TERM", "--")


def _kill_group_with_parent() -> Iterator[str]:
    """Have the kernel kill the whole process group when this process dies."""
    # A death signal reaches one process only. ``timeout`` takes ALRM as the end of its time, and then kills
    # its group.
    yield from ("setpriv", "--pdeathsig", "ALRM", "--")
    if os.access(".", os.X_OK):
        # Nothing begins if this process died before that was arranged: one that is no more has no working
        # directory to change to.
        yield from ("env", f"--chdir=/proc/{os.getpid()}/cwd")
    yield from ("timeout", "--signal=KILL", "0")


def _landlock(plan: MountPlan) -> Iterator[str]:
    # Without site packages Python starts in 8 ms; that of a virtual environment would look for its own.
    python = getattr(sys, "_base_executable", None) or sys.executable
    yield from ("setpriv", "--pdeathsig", "KILL", "--", python, "-I", "-S", "-E", "-B", str(_LAUNCHER))
    yield "network" if plan.network else "no-network"
    for path, access in plan.mounts.items():
        if not access.is_hidden:
            yield from (access.name, str(path))
    yield "--"
