"""Decides whether requests can be compiled in memory: on a tmpfs of the host that has room for all of them.

Compilers write many small files that nobody needs a second later, and that never have to reach a disk.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from stapsrv.config.tuning import Tuning

# What files in memory take, other programs lack: so as much again must stay available.
_RESERVE_FACTOR = 2


@attrs.frozen(kw_only=True)
class Tmpfs:
    """A directory that is a tmpfs on most hosts, and the kernel's files on how much memory there is.

    Where ``logind_users`` exists, a user's files in ``directory`` are removed when he logs out, unless his
    number is below ``first_login_uid`` (logind.conf(5), ``RemoveIPC``).
    """

    directory: Path = Path("/dev/shm")  # noqa: S108 - made safe like /tmp, by its sticky bit
    mounts: Path = Path("/proc/self/mounts")
    meminfo: Path = Path("/proc/meminfo")
    cgroups: Path = Path("/proc/self/cgroup")
    cgroup_mount: Path = Path("/sys/fs/cgroup")
    logind_users: Path = Path("/run/systemd/users")
    first_login_uid: int = 1000

    def find_directory(self, most_bytes: int) -> Path | None:
        """Return the directory if it is safe and has room for ``most_bytes``, else None."""
        with contextlib.suppress(OSError, ValueError):
            status = os.statvfs(self.directory)
            has_room = status.f_bavail * status.f_frsize >= most_bytes
            if has_room and self._is_safe() and self._available_bytes() >= _RESERVE_FACTOR * most_bytes:
                return self.directory
        return None

    def _is_safe(self) -> bool:
        # In memory, and nobody but this user can or will remove his files there.
        mounts = self.mounts.read_text(encoding="utf-8", errors="replace").splitlines()
        types = [type_ for _, path, type_, *_ in map(str.split, mounts) if path == str(self.directory)]
        # The last mount covers those before it.
        is_tmpfs = types[-1:] == ["tmpfs"]
        is_sticky = bool(self.directory.stat().st_mode & stat.S_ISVTX)
        is_cleaned = os.geteuid() >= self.first_login_uid and self.logind_users.is_dir()
        return is_tmpfs and is_sticky and not is_cleaned and os.access(self.directory, os.W_OK | os.X_OK)

    def _available_bytes(self) -> int:
        words = (line.split() for line in self.meminfo.read_text(encoding="ascii").splitlines())
        (available,) = (int(line[1]) * 1024 for line in words if line[0] == "MemAvailable:")
        return min([available, *self._cgroup_limits()])

    def _cgroup_limits(self) -> Iterator[int]:
        # Those of this process's groups, and of all above them.
        for line in self.cgroups.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            base = self.cgroup_mount / controllers
            own = base / path.lstrip("/")
            for group in (own, *own.parents):
                if not group.is_relative_to(base):
                    break
                # The file's name in version 2, and in version 1.
                for name in ("memory.max", "memory.limit_in_bytes"):
                    with contextlib.suppress(OSError):
                        limit = (group / name).read_text(encoding="ascii").strip()
                        if limit != "max":
                            yield int(limit)


def find_memory_directory(environ: Mapping[str, str], tuning: Tuning) -> Path | None:
    """Return the directory in memory to compile in; None where that is to be ``TMPDIR`` or /tmp."""
    if environ.get("TMPDIR") or not tuning.effective("temp_in_memory"):
        return None
    return Tmpfs().find_directory(tuning.effective("total_temp_bytes"))
