"""Whether requests can be compiled in memory: on a tmpfs of the host that has room for all of them.

Compilers write many small files that nobody needs a second later; no disk has to hear of them. But what is in
memory is nobody else's: so there must be twice as much available as all compiles together may use.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from stapsrv.config.tunables import Tuning

_ENOUGH = 2


@attrs.frozen(kw_only=True)
class Tmpfs:
    """Where the kernel tells of memory.

    Attributes:
        directory: a tmpfs on most hosts, for all users.
        mounts: the table of mounts.
        info: how much memory there is (proc(5), ``/proc/meminfo``).
        membership: the control groups of this process.
        groups: where those are mounted.
        sessions: there where a user's files in ``directory`` are removed when he logs out (logind.conf(5),
            ``RemoveIPC``), unless he is a user of the system.
        first_person: the first user who is none.
    """

    directory: Path = Path("/dev/shm")  # noqa: S108 - made safe like /tmp, by its sticky bit
    mounts: Path = Path("/proc/self/mounts")
    info: Path = Path("/proc/meminfo")
    membership: Path = Path("/proc/self/cgroup")
    groups: Path = Path("/sys/fs/cgroup")
    sessions: Path = Path("/run/systemd/users")
    first_person: int = 1000

    def find_directory(self, most_bytes: int) -> Path | None:
        """Return where files of at most ``most_bytes`` can be in memory; None where that would be a risk."""
        try:
            if self._is_safe() and self._available_bytes() >= _ENOUGH * most_bytes:
                status = os.statvfs(self.directory)
                return self.directory if status.f_bavail * status.f_frsize >= most_bytes else None
        except (OSError, ValueError):
            return None
        return None

    def _is_safe(self) -> bool:
        """Whether it is in memory, others cannot remove what is this user's, and nobody tidies up there."""
        mounts = self.mounts.read_text(encoding="utf-8", errors="replace").splitlines()
        kinds = [kind for _, place, kind, *_ in map(str.split, mounts) if place == str(self.directory)]
        is_tmpfs = kinds[-1:] == ["tmpfs"]
        is_sticky = bool(self.directory.stat().st_mode & stat.S_ISVTX)
        is_tidied = os.geteuid() >= self.first_person and self.sessions.is_dir()
        return is_tmpfs and is_sticky and not is_tidied and os.access(self.directory, os.W_OK | os.X_OK)

    def _available_bytes(self) -> int:
        """Return how much memory this process could have: of the host, and of its control groups."""
        words = (line.split() for line in self.info.read_text(encoding="ascii").splitlines())
        (available,) = (int(line[1]) * 1024 for line in words if line[0] == "MemAvailable:")
        return min([available, *self._limits()])

    def _limits(self) -> Iterator[int]:
        """Give the bounds of memory of the control groups of this process, those above it included."""
        for line in self.membership.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            base = self.groups / controllers
            group = base / path.lstrip("/")
            for place in (group, *group.parents):
                if not place.is_relative_to(base):
                    break
                for name in ("memory.max", "memory.limit_in_bytes"):
                    try:
                        told = (place / name).read_text(encoding="ascii").strip()
                    except OSError:
                        continue
                    if told != "max":
                        yield int(told)


def find_memory_directory(environ: Mapping[str, str], tuning: Tuning) -> Path | None:
    """Return where a service compiles in memory; None where it does so in ``TMPDIR``, or in /tmp."""
    if environ.get("TMPDIR") or not tuning.effective("temp_in_memory"):
        return None
    return Tmpfs().find_directory(tuning.effective("total_temp_bytes"))
