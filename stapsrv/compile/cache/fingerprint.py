"""The fingerprint of a place in the file system: a file, or a directory with all that it leads to.

Two looks at a place give the same fingerprint only if no entry differs in type, size, inode or times of
change; the inode's own time of change (``ctime``) shows even what was written and dated back. Symbolic
links count as what they say and as what they lead to.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import attrs

from stapsrv.errors import StapsrvError

Watch = Callable[[bytes, bytes | None], None]
"""Called with a directory, by a path without links, before it is looked at, and the only entry of it that
counts, or None for all."""

_MOST_ENTRIES = 400_000
"""Of one place; a kernel with all its modules' debugging information has a tenth of that."""
_MOST_LINKS = 40


@attrs.frozen(order=True)
class WatchedPath:
    """Where to look.

    Attributes:
        path: absolute; it need not exist.
        below: whether the directories below count, and all that symbolic links lead to.
    """

    path: str
    below: bool = True


class TooLargeError(StapsrvError):
    """A place that cannot be kept under watch."""


def fingerprint(place: WatchedPath, watch: Watch) -> bytes:
    """Return the fingerprint of a place, having had all watched that it depends on.

    Raises:
        TooLargeError: there is more than can be looked at time and again.
        OSError: what ``watch`` raises; but not for a directory that nothing can be reached through.
    """
    look = _Scanner(watch)
    look.at(Path(place.path), below=place.below)
    return look.digest()


def stamp(path: str | bytes | Path) -> bytes:
    """Return what tells a file from what it was and from another in its place; empty if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - called for every request
    except OSError:
        return b""
    return _stamp(status)


class _Scanner:
    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._sha = hashlib.sha256()
        self._seen: set[tuple[int, int]] = set()
        self._real: dict[bytes, bytes] = {}
        self._left = _MOST_ENTRIES

    def digest(self) -> bytes:
        return self._sha.digest()

    def at(self, path: Path, *, below: bool) -> None:
        self._way(os.fsencode(path), _MOST_LINKS)
        pending = [os.path.realpath(os.fsencode(path))]
        while pending:
            directory = pending.pop()
            try:
                status = os.stat(directory)  # noqa: PTH116 - paths are bytes
            except OSError as exc:
                self._add(directory, b"missing", str(exc.errno).encode())
                continue
            self._add(directory, _stamp(status) if not stat.S_ISDIR(status.st_mode) else _kind(status))
            if not stat.S_ISDIR(status.st_mode) or (status.st_dev, status.st_ino) in self._seen:
                continue
            self._seen.add((status.st_dev, status.st_ino))
            pending += self._entries(directory, below=below)

    def _entries(self, directory: bytes, *, below: bool) -> list[bytes]:
        """Take in a directory's entries, and return the directories that are to be looked at next."""
        try:
            self._watch(directory, None)
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except (PermissionError, FileNotFoundError, NotADirectoryError) as exc:
            if isinstance(exc, PermissionError):
                _refuse_hidden(directory, exc)
            self._add(directory, b"unreadable", str(exc.errno).encode())
            return []
        following = []
        for entry in entries:
            self._left -= 1
            if self._left < 0:
                raise TooLargeError(
                    f"there are more than {_MOST_ENTRIES} entries", where=os.fsdecode(directory)
                )
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                self._add(entry.name, _kind(status))
                if below:
                    following.append(entry.path)
                continue
            self._add(entry.name, _stamp(status))
            if stat.S_ISLNK(status.st_mode):
                following += self._link(entry.path, below=below)
        return following

    def _link(self, path: bytes, *, below: bool) -> list[bytes]:
        """Take in what a symbolic link leads to; a directory is returned, to be looked at."""
        directory, _slash, _name = path.rpartition(b"/")
        self._way(_joined(directory, os.readlink(path)), _MOST_LINKS)  # noqa: PTH115 - paths are bytes
        try:
            status = os.stat(path)  # noqa: PTH116 - paths are bytes
        except OSError as exc:
            self._add(path, b"broken", str(exc.errno).encode())
            return []
        if not stat.S_ISDIR(status.st_mode):
            self._add(path, _stamp(status))
            return []
        return [os.path.realpath(path)] if below else []

    def _way(self, path: bytes, links: int) -> None:
        """Watch each step of the way to a path, so that it is noticed when it comes to lead elsewhere."""
        steps = path.split(b"/")
        for number in range(1, len(steps)):
            if not steps[number]:
                continue
            parent = self._without_links(b"/".join(steps[:number]) or b"/")
            try:
                self._watch(parent, steps[number])
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as exc:
                if not _tells_of_itself(parent + b"/" + steps[number]):
                    _refuse_hidden(parent, exc)
                continue
            try:
                target = os.readlink(parent + b"/" + steps[number])  # noqa: PTH115 - paths are bytes
            except OSError:  # no link, or nothing at all
                continue
            self._add(path, target)
            if links:
                self._way(_joined(parent, target), links - 1)

    def _without_links(self, directory: bytes) -> bytes:
        """Return where a directory really is; looked up once, for it is asked for time and again."""
        real = self._real.get(directory)
        if real is None:
            real = self._real[directory] = os.path.realpath(directory)
        return real

    def _add(self, *parts: bytes) -> None:
        for part in parts:
            self._sha.update(len(part).to_bytes(4, "big"))
            self._sha.update(part)


def _tells_of_itself(path: bytes) -> bool:
    """Whether it is a directory that can be watched: it tells when it is moved away or removed."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and os.access(path, os.R_OK)


def _refuse_hidden(directory: bytes, exc: PermissionError) -> None:
    """See that nothing can be reached through a directory that cannot be watched.

    Raises:
        PermissionError: who knows its names can, as with mode 0711.
    """
    if os.access(directory, os.X_OK):
        raise PermissionError(exc.errno, exc.strerror, os.fsdecode(directory)) from exc


def _joined(directory: bytes, target: bytes) -> bytes:
    """Return where a link in a directory, whose name has no links, leads first."""
    # With its "..": what that leads to is another place where a link comes before it.
    return os.path.join(directory, target)  # noqa: PTH118 - paths are bytes


def _kind(status: os.stat_result) -> bytes:
    return b"%o" % status.st_mode


def _stamp(status: os.stat_result) -> bytes:
    return b"%o %d %d %d %d" % (
        status.st_mode,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
