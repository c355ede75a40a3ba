"""Control groups (cgroup v2): where the host delegates one, each request gets one of its own below it.

The memory, processes and processor time of a request are then bounded as a whole, and it is ended as a
whole, whatever its processes do. A delegated group is one whose directory belongs to this user: systemd
gives it to a service with ``Delegate=yes``.

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

from stapsrv.config.table import Limits

CONTROLLERS = ("memory", "pids", "cpu")
_PERIOD_US = 100_000
# How long a killed process may take to be gone; only one that is stuck in the kernel takes longer.
_REMOVAL_S = 5.0
_REQUEST = "request"
_SUPERVISOR = "stap-server"


@attrs.frozen
class Delegation:
    """A control group that this process may divide, and the :data:`CONTROLLERS` that can be used in it."""

    directory: Path
    controllers: tuple[str, ...]

    @property
    def description(self) -> str:
        """Its directory and controllers, for logs and status."""
        bounds = f" with {', '.join(self.controllers)}" if self.controllers else ""
        return f"{self.directory}{bounds}"

    def make_group(self, name: str, limits: Limits) -> RequestGroup:
        """Make the group of one request, whose name no other has now; the caller removes it.

        Raises:
            OSError: it cannot be made.
        """
        directory = self.directory / f"{_REQUEST}-{os.getpid()}-{name}"
        directory.mkdir()
        group = RequestGroup(directory)
        try:
            for file, value in _control_files(limits).items():
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

    def add_tree(self, pid: int) -> None:
        """Move a new process and all that it has started into the group.

        Raises:
            OSError: the process cannot be moved.
        """
        (self.directory / "cgroup.procs").write_text(str(pid))
        # Only now are its children listed: one that is born from here on is in the group.
        children = _read(Path(f"/proc/{pid}/task/{pid}/children")).split()
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                self.add_tree(child)

    @property
    def exceeded(self) -> str | None:
        """The limit that the group met, ``memory`` or ``processes``; None if it met none."""
        if _read_counts(self.directory / "memory.events").get("oom_kill"):
            return "memory"
        if _read_counts(self.directory / "pids.events").get("max"):
            return "processes"
        return None

    def remove(self) -> None:
        """Kill every process that is left in it, wait until they are gone (5 s at most), and remove it."""
        with contextlib.suppress(OSError):
            (self.directory / "cgroup.kill").write_text("1")
        with contextlib.suppress(OSError):
            _wait_empty(self.directory / "cgroup.events")
        with contextlib.suppress(OSError):
            self.directory.rmdir()


def find_delegation(proc: Path = Path("/proc/self")) -> Delegation | None:
    """Find the control group that this process may divide, and move into a leaf of it; None without one."""
    own = _own_group(_read(proc / "cgroup"), _read(proc / "mountinfo"))
    if own is None or not _is_delegated(own):
        return None
    try:
        _remove_stale_groups(own)
        # The kernel allows processes in leaves only, once controllers are handed down.
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


def _own_group(cgroup: str, mountinfo: str) -> Path | None:
    path = re.search(r"^0::(/.*)$", cgroup, re.MULTILINE)
    mount = re.search(r"^\S+ \S+ \S+ (\S+) (\S+) .* - cgroup2 ", mountinfo, re.MULTILINE)
    if path is None or mount is None:
        return None
    top, point = mount.groups()
    relative = os.path.relpath(path[1], top)
    return None if relative.startswith("..") else Path(point, relative)


def _is_delegated(group: Path) -> bool:
    files = (group / "cgroup.procs", group / "cgroup.subtree_control")
    return (
        # The host's root group has no such file: it is nobody's to divide.
        (group / "cgroup.type").exists()
        and os.access(group, os.W_OK | os.X_OK)
        and all(os.access(file, os.W_OK) for file in files)
    )


def _remove_stale_groups(group: Path) -> None:
    # rmdir fails on a group that still has processes, which is another server's.
    for pattern in (f"{_REQUEST}-*", f"{_SUPERVISOR}-*"):
        for stale in group.glob(pattern):
            with contextlib.suppress(OSError):
                stale.rmdir()


def _control_files(limits: Limits) -> Mapping[str, str]:
    values = {}
    if limits.memory_bytes:
        values["memory.max"] = str(limits.memory_bytes)
        values["memory.oom.group"] = "1"
    if limits.processes:
        values["pids.max"] = str(limits.processes)
    if limits.cores:
        values["cpu.max"] = f"{round(limits.cores * _PERIOD_US)} {_PERIOD_US}"
    return values


def _read_counts(events: Path) -> Mapping[str, int]:
    pairs = (line.split() for line in _read(events).splitlines())
    return {name: int(count) for name, count in pairs}


def _wait_empty(events: Path) -> None:
    with events.open("rb", buffering=0) as file:
        # The kernel reports each change of the file as priority data.
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
