"""The fingerprint of a path in the file system: of a file, or of a directory with all that it leads to.

Two scans give the same fingerprint only if no entry differs in type, size, inode or times of change; the
inode's own time of change (``ctime``) shows even what was written and dated back. A symbolic link counts as
its text and as what it leads to.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import attrs

from stapsrv.errors import StapsrvError

# Called before a directory, by a path without links, is read: with the only entry of it that counts, or None.
Watch = Callable[[bytes, bytes | None], None]

# Of one path; a kernel with all its modules' debugging information has a tenth of that.
_MAX_ENTRIES = 400_000
_MAX_LINKS = 40


@attrs.frozen(order=True)
class WatchedPath:
    """An absolute path, which need not exist; recursive with all that its links lead to, too."""

    path: str
    recursive: bool = True


class TooLargeError(StapsrvError):
    """A path that has too many entries to be scanned time and again."""


def fingerprint(path: WatchedPath, watch: Watch) -> bytes:
    """Return the fingerprint of a path; ``watch`` is called for all that it depends on.

    It may raise TooLargeError, or what ``watch`` raises but for a directory that nothing is reached through.
    """
    return _Scanner(watch, recursive=path.recursive).scan(os.fsencode(path.path))


def stamp(path: str | bytes | Path) -> bytes:
    """Return a stamp that differs when a file is changed or replaced; empty if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - called for every request
    except OSError:
        return b""
    return _stamp(status)


class _Scanner:
    def __init__(self, watch: Watch, *, recursive: bool) -> None:
        self._watch = watch
        self._recursive = recursive
        self._sha = hashlib.sha256()
        self._seen: set[tuple[int, int]] = set()
        # All links of a directory ask for the same one.
        self._realpath = functools.cache(os.path.realpath)
        self._entries_left = _MAX_ENTRIES

    def scan(self, path: bytes) -> bytes:
        self._watch_steps(path, _MAX_LINKS)
        pending = [os.path.realpath(path)]
        while pending:
            directory = pending.pop()
            try:
                status = os.stat(directory)  # noqa: PTH116 - paths are bytes
            except OSError as exc:
                self._add(directory, b"missing", str(exc.errno).encode())
                continue
            self._add(directory, _stamp(status) if not stat.S_ISDIR(status.st_mode) else _mode(status))
            if not stat.S_ISDIR(status.st_mode) or (status.st_dev, status.st_ino) in self._seen:
                continue
            self._seen.add((status.st_dev, status.st_ino))
            pending += self._scan_directory(directory)
        return self._sha.digest()

    def _scan_directory(self, directory: bytes) -> list[bytes]:
        try:
            self._watch(directory, None)
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except (PermissionError, FileNotFoundError, NotADirectoryError) as exc:
            if isinstance(exc, PermissionError):
                _check_unreachable(directory, exc)
            self._add(directory, b"unreadable", str(exc.errno).encode())
            return []
        following = []
        for entry in entries:
            self._entries_left -= 1
            if self._entries_left < 0:
                raise TooLargeError(
                    f"there are more than {_MAX_ENTRIES} entries", where=os.fsdecode(directory)
                )
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                # Not its times: its entries are scanned themselves, where they count.
                self._add(entry.name, _mode(status))
                if self._recursive:
                    following.append(entry.path)
                continue
            self._add(entry.name, _stamp(status))
            if stat.S_ISLNK(status.st_mode):
                following += self._scan_link(entry.path)
        return following

    def _scan_link(self, path: bytes) -> list[bytes]:
        """Add what a symbolic link leads to; a directory is returned, to be scanned next."""
        directory, _slash, _name = path.rpartition(b"/")
        self._watch_steps(_joined(directory, os.readlink(path)), _MAX_LINKS)  # noqa: PTH115 - paths are bytes
        try:
            status = os.stat(path)  # noqa: PTH116 - paths are bytes
        except OSError as exc:
            self._add(path, b"broken", str(exc.errno).encode())
            return []
        if not stat.S_ISDIR(status.st_mode):
            self._add(path, _stamp(status))
            return []
        return [os.path.realpath(path)] if self._recursive else []

    def _watch_steps(self, path: bytes, links: int) -> None:
        """Watch each step on the way to a path, so that it is noticed when it comes to lead elsewhere."""
        steps = path.split(b"/")
        for number in range(1, len(steps)):
            if not steps[number]:
                continue
            parent = self._realpath(b"/".join(steps[:number]) or b"/")
            try:
                self._watch(parent, steps[number])
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as exc:
                if not _is_watchable(parent + b"/" + steps[number]):
                    _check_unreachable(parent, exc)
                continue
            try:
                target = os.readlink(parent + b"/" + steps[number])  # noqa: PTH115 - paths are bytes
            except OSError:  # no link, or nothing at all
                continue
            self._add(path, target)
            if links:
                self._watch_steps(_joined(parent, target), links - 1)

    def _add(self, *parts: bytes) -> None:
        for part in parts:
            self._sha.update(len(part).to_bytes(4, "big"))
            self._sha.update(part)


def _is_watchable(path: bytes) -> bool:
    """Whether it is a directory that can be watched itself, and so reports when it is moved or removed."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and os.access(path, os.R_OK)


def _check_unreachable(directory: bytes, exc: PermissionError) -> None:
    # With mode 0711 those who know the names can go through: what they reach could change unnoticed.
    if os.access(directory, os.X_OK):
        raise PermissionError(exc.errno, exc.strerror, os.fsdecode(directory)) from exc


def _joined(directory: bytes, target: bytes) -> bytes:
    # With its "..", which leads elsewhere than the text says where a link comes before it.
    return os.path.join(directory, target)  # noqa: PTH118 - paths are bytes


def _mode(status: os.stat_result) -> bytes:
    return b"%o" % status.st_mode


def _stamp(status: os.stat_result) -> bytes:
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return b"%o %d %d %d %d" % (status.st_mode, status.st_ino, status.st_size, *times)
