"""Control groups: where the host delegates one, each request gets one of its own (cgroup v2).

Its memory, processes and processor time are bounded as a whole, and it is ended as a whole, whatever its
processes do. A delegated group is one whose directory belongs to this user: systemd gives it to a service
with ``Delegate=yes``. Processes may only be in its leaves, so this process moves into one first.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst; systemd's documentation of delegation.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Mapping
from pathlib import Path

import attrs

from stapsrv.sandbox.limits import ResourceLimits

CONTROLLERS = ("memory", "pids", "cpu")
_PERIOD_US = 100_000
_REMOVAL_S = 5.0
"""How long a killed process may take to be gone; only one stuck in the kernel takes longer."""
_REQUEST = "request"
_SUPERVISOR = "stap-server"


@attrs.frozen
class Delegation:
    """A control group that this process may divide.

    Attributes:
        directory: its place in the file system.
        controllers: which of :data:`CONTROLLERS` can be used in it.
    """

    directory: Path
    controllers: tuple[str, ...]

    @property
    def description(self) -> str:
        """What it is good for, in a few words."""
        bounds = f" with {', '.join(self.controllers)}" if self.controllers else ""
        return f"{self.directory}{bounds}"

    def make_group(self, name: str, resources: ResourceLimits) -> RequestGroup:
        """Make the group of one request.

        Args:
            name: no other group's at the same time.
            resources: its bounds.

        Raises:
            OSError: it cannot be made.
        """
        directory = self.directory / f"{_REQUEST}-{os.getpid()}-{name}"
        directory.mkdir()
        group = RequestGroup(directory)
        try:
            for file, value in _bounds(resources).items():
                if file.split(".")[0] in self.controllers and (directory / file).exists():
                    (directory / file).write_text(value)
        except OSError:
            group.remove()
            raise
        return group


@attrs.frozen
class RequestGroup:
    """The control group of one request."""

    directory: Path

    def adopt(self, pid: int) -> None:
        """Take in a process that has just been started, with what it has started itself.

        Each is moved before its children are looked for: a child that is born after that is in the group.

        Raises:
            OSError: the process cannot be moved.
        """
        (self.directory / "cgroup.procs").write_text(str(pid))
        children = _read(Path(f"/proc/{pid}/task/{pid}/children")).split()
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                self.adopt(child)

    @property
    def exceeded(self) -> str | None:
        """The bound that it met: ``memory`` or ``processes``."""
        if _counts(self.directory / "memory.events").get("oom_kill"):
            return "memory"
        if _counts(self.directory / "pids.events").get("max"):
            return "processes"
        return None

    def remove(self) -> None:
        """End every process that is left in it, wait some seconds until they are gone, and remove it."""
        with contextlib.suppress(OSError):
            (self.directory / "cgroup.kill").write_text("1")
        with contextlib.suppress(OSError):
            _wait_empty(self.directory / "cgroup.events")
        with contextlib.suppress(OSError):
            self.directory.rmdir()


def find_delegation(proc: Path = Path("/proc/self")) -> Delegation | None:
    """Find the group that this process may divide, and move into a leaf of it; None if there is none.

    Args:
        proc: what the kernel says of this process.
    """
    own = _own_group(_read(proc / "cgroup"), _read(proc / "mountinfo"))
    if own is None or not _is_ours(own):
        return None
    try:
        _sweep(own)
        leaf = own / f"{_SUPERVISOR}-{os.getpid()}"
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return None
    usable = []
    offered = _read(own / "cgroup.controllers").split()
    for controller in CONTROLLERS:
        # One at a time: one that is refused leaves the others as they are.
        with contextlib.suppress(OSError):
            if controller in offered:
                (own / "cgroup.subtree_control").write_text(f"+{controller}")
                usable.append(controller)
    return Delegation(own, tuple(usable))


def _own_group(membership: str, mounts: str) -> Path | None:
    """Return the directory of the group that a process is in, by its ``cgroup`` and ``mountinfo``."""
    path = re.search(r"^0::(/.*)$", membership, re.MULTILINE)
    mount = re.search(r"^\S+ \S+ \S+ (\S+) (\S+) .* - cgroup2 ", mounts, re.MULTILINE)
    if path is None or mount is None:
        return None
    top, point = mount.groups()
    relative = os.path.relpath(path[1], top)
    return None if relative.startswith("..") else Path(point, relative)


def _is_ours(group: Path) -> bool:
    """Whether this user may make groups here and move processes; never in the host's own group."""
    files = (group / "cgroup.procs", group / "cgroup.subtree_control")
    return (
        (group / "cgroup.type").exists()
        and os.access(group, os.W_OK | os.X_OK)
        and all(os.access(file, os.W_OK) for file in files)
    )


def _sweep(group: Path) -> None:
    """Remove the empty groups that processes before this one left behind."""
    for pattern in (f"{_REQUEST}-*", f"{_SUPERVISOR}-*"):
        for left in group.glob(pattern):
            with contextlib.suppress(OSError):
                left.rmdir()


def _bounds(resources: ResourceLimits) -> Mapping[str, str]:
    """Return what is written to a group's files."""
    bounds = {}
    if resources.memory_bytes:
        bounds["memory.max"] = str(resources.memory_bytes)
        bounds["memory.oom.group"] = "1"
    if resources.processes:
        bounds["pids.max"] = str(resources.processes)
    if resources.cores:
        bounds["cpu.max"] = f"{round(resources.cores * _PERIOD_US)} {_PERIOD_US}"
    return bounds


def _counts(events: Path) -> Mapping[str, int]:
    pairs = (line.split() for line in _read(events).splitlines())
    return {name: int(count) for name, count in pairs}


def _wait_empty(events: Path) -> None:
    """Wait until a group has no process; the kernel tells of each change by the file's priority data."""
    with events.open("rb", buffering=0) as file:
        poll = select.poll()
        poll.register(file, select.POLLPRI | select.POLLERR)
        deadline = time.monotonic() + _REMOVAL_S
        while b"populated 1" in os.pread(file.fileno(), 4096, 0) and time.monotonic() < deadline:
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
