"""The directory of results: one file for each, written whole, checked when read, bounded in size and age.

It belongs to one user, and all processes that compile as this user share it: a file appears under its name by
a rename, so a reader meets the old one, the new one or none. The least recently used entries are evicted
first: a file's time of access says when it was used, and is set here, since mounts may not keep it. Pinned
ones come last; a file's mode says so to all processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from stapsrv.errors import ConfigError
from stapsrv.system.atomic_file import replace_file

# In a user's $SYSTEMTAP_DIR: beside stap's own cache, and out of the reach of what compiles.
RESULTS_DIRECTORY = "server-results"

_MAGIC = b"stapsrv result 1\n"
_HEADER_BYTES = len(_MAGIC) + hashlib.sha256().digest_size
_ENTRY = ".result"
_PINNED, _PLAIN = 0o400, 0o600
# Begins the names of files that are being written; no writer takes as long as that.
_UNFINISHED = "."
_MAX_UNFINISHED_S = 3600.0
# Rescan the directory after writing this fraction of max_bytes: other processes write too.
_RESCAN_FRACTION = 0.1
# Evict down to this fraction of max_bytes, so that not every write evicts.
_EVICT_FRACTION = 0.9


class StoreStatistics(NamedTuple):
    """The content of a directory, in numbers."""

    entries: int
    stored_bytes: int


class VerifyCounts(NamedTuple):
    """The numbers of sound entries, and of damaged ones, which were removed."""

    sound: int
    damaged: int


class DamagedError(Exception):
    """An entry is not what was written."""


class _File(NamedTuple):
    path: Path
    status: os.stat_result
    is_finished: bool


class DiskStore:
    """A directory of results, made with the first entry; a ConfigError if others could read or write it."""

    def __init__(self, directory: Path, *, max_bytes: int, max_age_s: float) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._scanned_bytes = max_bytes  # as of the last scan; the first write is followed by one
        self._written_bytes = 0  # by this process, since that scan
        _check(directory)

    def use(self, name: str) -> bool:
        """Mark an entry as used; return whether it is there, sound or not. An expired one is removed."""
        path = self._path(name)
        try:
            status = path.stat()
            if self._is_expired(status):
                path.unlink(missing_ok=True)
                return False
        except OSError:
            return False
        with contextlib.suppress(OSError):
            os.utime(path, (time.time(), status.st_mtime))
        return True

    def read(self, name: str) -> bytes | None:
        """Return what was written, unless it has expired; what is damaged is removed, with a DamagedError."""
        path = self._path(name)
        if not self.use(name):
            return None
        try:
            return _unsealed(path.read_bytes(), name)
        except OSError:
            return None
        except DamagedError:
            path.unlink(missing_ok=True)
            raise

    def write(self, name: str, body: bytes) -> int:
        """Write, and return how many other files were evicted; after an OSError the old content is there."""
        content = _sealed(body, name)
        if len(content) > self._max_bytes:
            return 0
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._path(name), content)
        self._written_bytes += len(content)
        is_full = self._scanned_bytes + self._written_bytes > self._max_bytes
        return self.evict() if is_full or self._written_bytes > self._max_bytes * _RESCAN_FRACTION else 0

    def evict(self) -> int:
        """Remove what has expired, and the least recently used until there is room; return how many."""
        files = sorted(self._files(), key=lambda file: (_is_pinned(file), file.status.st_atime))
        total = sum(file.status.st_size for file in files)
        limit = self._max_bytes * _EVICT_FRACTION if total > self._max_bytes else self._max_bytes
        evicted = 0
        for path, status, is_finished in files:
            is_forgotten = not is_finished and time.time() - status.st_mtime > _MAX_UNFINISHED_S
            if is_forgotten or (is_finished and (total > limit or self._is_expired(status))):
                path.unlink(missing_ok=True)
                total -= status.st_size
                evicted += 1
        self._scanned_bytes, self._written_bytes = total, 0
        return evicted

    def pin(self, names: Collection[str], *, only: bool) -> None:
        """Evict these entries, if they are there, after all others; with ``only``, no others so."""
        if only:
            for file in list(self._files()):
                if _is_pinned(file) and file.path.name.removesuffix(_ENTRY) not in names:
                    _set_mode(file.path, _PLAIN)
        for name in names:
            _set_mode(self._path(name), _PINNED)

    def clear(self) -> int:
        """Remove all; return how many results there were."""
        files = list(self._files())
        for file in files:
            file.path.unlink(missing_ok=True)
        self._scanned_bytes = self._max_bytes
        return sum(file.is_finished for file in files)

    def verify(self) -> VerifyCounts:
        """Read every entry, and remove those that are damaged."""
        sound = damaged = 0
        for path in [file.path for file in self._files() if file.is_finished]:
            try:
                _unsealed(path.read_bytes(), path.name.removesuffix(_ENTRY))
                sound += 1
            except FileNotFoundError:
                continue
            except (DamagedError, OSError):
                path.unlink(missing_ok=True)
                damaged += 1
        return VerifyCounts(sound, damaged)

    def statistics(self) -> StoreStatistics:
        """Count the results."""
        sizes = [file.status.st_size for file in self._files() if file.is_finished]
        return StoreStatistics(len(sizes), sum(sizes))

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}{_ENTRY}"

    def _is_expired(self, status: os.stat_result) -> bool:
        return time.time() - status.st_mtime > self._max_age_s

    def _files(self) -> Iterator[_File]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                is_finished = entry.name.endswith(_ENTRY)
                if not is_finished and not entry.name.startswith(_UNFINISHED):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield _File(Path(entry.path), status, is_finished)


def _is_pinned(file: _File) -> bool:
    return file.is_finished and stat.S_IMODE(file.status.st_mode) == _PINNED


def _set_mode(path: Path, mode: int) -> None:
    # Another process may have removed it.
    with contextlib.suppress(OSError):
        path.chmod(mode)


def _sealed(body: bytes, name: str) -> bytes:
    # The checksum covers the name: an entry under another's name is damaged, too.
    sha = hashlib.sha256(name.encode())
    sha.update(body)
    return _MAGIC + sha.digest() + body


def _unsealed(content: bytes, name: str) -> bytes:
    body = content[_HEADER_BYTES:]
    if content != _sealed(body, name):
        raise DamagedError
    return body


def _check(directory: Path) -> None:
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ConfigError(
            f"cannot be used ({exc.strerror})", where=str(directory), remedy="or say RESULT_CACHE=no"
        ) from exc
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ConfigError(
            "is not a directory of this user alone",
            where=str(directory),
            remedy="remove it, or chmod it to 0700, or say RESULT_CACHE=no",
        )
