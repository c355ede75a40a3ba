"""stap's findings about each toolchain, kept for later compiles; only the server writes them.

stap keeps modules and what it finds out about a kernel under their names, and trusts what it finds there. So
each compile has a cache of its own, in its own directory, which is removed with it. It begins with links to
what the server knows of the toolchain: the features of a kernel and its tracepoints, both dear. That was made
by compiles of the server's own scripts, and nothing of a client's compile ever gets there. Seen with
SystemTap 4.8, which also takes no notice of changed headers and compilers: so each toolchain has its own.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from stapsrv.system import trees
from stapsrv.system.atomic_file import replace_file

# In stap's own directory; all servers and supervisors of a user share it.
CACHES_DIRECTORY = "server-toolchains"
# Of what nobody watches: what stap's own names tell apart.
_UNWATCHED = "unwatched"

_MAX_DIRECTORIES = 8
# One that was used in this time may be in use by another process: a compile takes ten minutes at most.
_IN_USE_S = 3600.0
_MAX_FILES = 2000  # Linux 6.1 has two hundred headers of tracepoints
_MAX_FILE_BYTES = 16 << 20
_MAX_BYTES = 256 << 20
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Finding(enum.Enum):
    """A kind of findings that stap keeps for all scripts, by the pattern of their file names."""

    FEATURES = r"stapconf_[0-9a-f]{32}_[0-9]+\.h"
    TRACEPOINTS = r"tracequery_[0-9a-f]{32}_[0-9]+\.o"


_DIRECTORY = re.compile(r"[0-9a-f]{2}")
_NAMES = {finding: re.compile(finding.value) for finding in Finding}


@attrs.frozen
class StapCache:
    """The findings about one toolchain, at ``path``, which need not exist; the methods block on files."""

    path: Path

    @classmethod
    def of(cls, systemtap: Path, toolchain: bytes = b"") -> StapCache:
        """Return that of a toolchain's digest, or of what is not watched, below stap's own directory."""
        return cls(systemtap / CACHES_DIRECTORY / (toolchain.hex()[:32] or _UNWATCHED))

    def lend(self, directory: Path) -> None:
        """Make ``directory``, the cache of one compile, with links to what is known; may raise OSError."""
        directory.mkdir(mode=0o700)
        with contextlib.suppress(OSError):
            if not self.path.is_dir():
                self._make()
            os.utime(self.path)
        for path in _findings(self.path, others=False):
            own = directory / path.parent.name
            own.mkdir(mode=0o700, exist_ok=True)
            (own / path.name).symlink_to(path)

    def keep(self, directory: Path) -> None:
        """Take what a compile of the server's own script has found out in its cache; blocks on files."""
        # stap from 5.1 on lets others write there, but others cannot get there.
        self._copy(directory, others=True)

    def missed_by(self, directory: Path) -> frozenset[Finding]:
        """Return what a compile with that cache had to find out by itself; blocks on files."""
        # stap writes anew also what it has found there.
        made = _findings(directory, others=True)
        return _kinds(path for path in made if not (self.path / path.parent.name / path.name).exists())

    def _make(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        toolchains = {path.name for path in self.path.parent.iterdir()} - {_UNWATCHED}
        self.path.mkdir(mode=0o700, exist_ok=True)
        if not toolchains or self.path.name == _UNWATCHED:
            # What stap's user has found out by himself, ten seconds' work, where nobody else can write.
            self._copy(self.path.parent.parent / "cache", others=False)
        self._evict()

    def _copy(self, source: Path, *, others: bool) -> None:
        left = _MAX_BYTES
        for path in _findings(source, others=others):
            target = self.path / path.parent.name / path.name
            with contextlib.suppress(OSError):
                data = None if target.exists() else _read(path, min(left, _MAX_FILE_BYTES), others=others)
                if data is not None:
                    left -= len(data)
                    target.parent.mkdir(mode=0o700, exist_ok=True)
                    replace_file(target, data, mode=0o400)

    def _evict(self) -> None:
        used = {}
        for path in self.path.parent.iterdir():
            # Another process may remove or rename any of them at the same time.
            with contextlib.suppress(FileNotFoundError):
                used[path] = path.stat().st_mtime
        unused = (path for path in used if time.time() - used[path] > _IN_USE_S)
        for path in sorted(unused, key=used.__getitem__)[: max(0, len(used) - _MAX_DIRECTORIES)]:
            trees.remove(path)


def restrict_users_cache(systemtap: Path) -> None:
    """Close stap's own cache to other users, to whom stap from 5.1 on leaves it open; may raise OSError."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        fd = os.open(systemtap / "cache", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                os.fchmod(fd, 0o700)
        finally:
            os.close(fd)


def found_in(directory: Path) -> frozenset[Finding]:
    """Return what is in the cache of a compile that has ended, known before or found out by it; blocks."""
    return _kinds(_findings(directory, others=True))


def _kinds(findings: Iterable[Path]) -> frozenset[Finding]:
    names = [path.name for path in findings]
    return frozenset(kind for kind, name in _NAMES.items() if any(map(name.fullmatch, names)))


def _findings(cache: Path, *, others: bool) -> Iterator[Path]:
    """Yield a bounded number of files that are named as findings; unless ``others``, where none can write."""
    count = 0
    with contextlib.suppress(OSError), os.scandir(cache) as directories:
        for directory in directories:
            is_named = _DIRECTORY.fullmatch(directory.name) and directory.is_dir(follow_symlinks=False)
            if not is_named or not _is_own(directory.stat(follow_symlinks=False), others=others):
                continue
            with os.scandir(directory.path) as files:
                for file in files:
                    if any(name.fullmatch(file.name) for name in _NAMES.values()):
                        count += 1
                        if count > _MAX_FILES:
                            return
                        yield Path(file.path)


def _read(path: Path, most_bytes: int, *, others: bool) -> bytes | None:
    """Return the content of a regular file of this user's, if it is that; may raise OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _is_own(status, others=others):
            return None
        data = file.read(most_bytes + 1)
        return data if len(data) <= most_bytes else None


def _is_own(status: os.stat_result, *, others: bool) -> bool:
    return status.st_uid == os.geteuid() and (others or not status.st_mode & _WRITABLE_BY_OTHERS)
