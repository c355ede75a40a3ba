"""Reports what changed in directories, by one inotify(7) queue for everything that depends on them."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from stapsrv.system import inotify
from stapsrv.system.mount_table import Mounts
from stapsrv.system.readiness import wait_readable
from stapsrv.system.symlinks import follow

_K = TypeVar("_K", bound=Hashable)

_GONE = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED


class _Interest(NamedTuple, Generic[_K]):
    key: _K
    directory: bytes
    name: bytes | None


class DirectoryWatcher(Generic[_K]):
    """Directories and entries under watch, each for a key of the caller's; to be closed.

    Watches can be added in any thread, since a file system may hang. Add the watch before reading a
    directory: a change in between is then either read or reported. The mask says what counts as a change.

    Raises:
        OSError: this user watches too much already (``fs.inotify.max_user_instances``).
    """

    # It waits on a descriptor, on asyncio and on Trio; the usual packages know asyncio alone or keep a thread
    # for each directory.

    def __init__(self, mask: int = inotify.CHANGE) -> None:
        self._mask = mask
        self._queue = inotify.Inotify()
        try:
            self._mounts = Mounts()
        except OSError:
            self._queue.close()
            raise
        # Never held during a call that may hang: the event loop's thread takes it.
        self._lock = threading.Lock()
        self._interests: dict[int, set[_Interest[_K]]] = {}

    @property
    def descriptor(self) -> int:
        """Readable when there are events."""
        return self._queue.descriptor

    def close(self) -> None:
        """Stop watching."""
        self._queue.close()
        self._mounts.close()

    def watch(self, key: _K, directory: bytes, name: bytes | None = None) -> None:
        """Report ``key`` when a directory, or the one entry ``name`` of it, changes from now on.

        Mounts are reported as well if the path is free of links.

        Raises:
            OSError: it cannot be watched.
        """
        self._watch(_Interest(key, directory, name))

    def watch_files(self, key: _K, directory: Path, names: Iterable[str]) -> None:
        """Report ``key`` when one of these files changes, instead of what it was watched for before.

        Raises:
            OSError: the directory cannot be watched, perhaps because it is missing.
        """
        # With the links on the way and what they lead to: some tools change files by swapping a link.
        with self._rewatch(key) as watch:
            for name in names:
                watch(os.fsencode(directory), os.fsencode(name))
                real, links = follow(directory / name)
                for path in (*(link.path for link in links), *(() if real is None else (real,))):
                    # Not every directory on the way can be read by this user.
                    with contextlib.suppress(OSError):
                        watch(os.fsencode(path.parent), os.fsencode(path.name))

    def watch_directories(self, key: _K, directories: Iterable[Path]) -> None:
        """Report ``key`` when these directories or their subdirectories change, as :meth:`watch_files` does.

        Instead of a missing directory, its nearest parent that exists is watched.

        Raises:
            OSError: this user watches too much already (``fs.inotify.max_user_watches``).
        """
        with self._rewatch(key) as watch:
            for directory in directories:
                watched = None
                # Again until nothing changes: the next directory on the way may have been made just before.
                while (nearest := _nearest(directory)) != watched:
                    watched = nearest
                    _watch_if_readable(watch, nearest)
                if watched == directory:
                    for child in _children(directory):
                        _watch_if_readable(watch, child)

    def changed(self) -> frozenset[_K] | None:
        """Return the keys of what changed since the last call, without waiting; None if events were lost."""
        events = self._queue.read()
        points = self._mounts.changed()
        if any(event.mask & inotify.OVERFLOW for event in events):
            return None
        changed: set[_K] = set()
        with self._lock:
            if points:
                every = itertools.chain.from_iterable(self._interests.values())
                changed.update(each.key for each in every if _is_under_mount(points, each))
            for event in events:
                is_gone = event.mask & _GONE and not event.name
                for interest in self._interests.get(event.watch, ()):
                    if is_gone or interest.name in (None, event.name):
                        changed.add(interest.key)
                if event.mask & inotify.IGNORED:
                    self._interests.pop(event.watch, None)
        return frozenset(changed)

    async def wait_changed(self) -> frozenset[_K] | None:
        """Wait until something has changed; returns what :meth:`changed` does.

        Cancellation: no change is lost.
        """
        while True:
            await wait_readable(self.descriptor)
            changed = self.changed()
            if changed is None or changed:
                return changed

    def _watch(self, interest: _Interest[_K]) -> int:
        number = -1
        # Again until it is the same watch: _rewatch() may have ended it before the interest was in the table.
        while (found := self._queue.watch(interest.directory, self._mask)) != number:
            number = found
            with self._lock:
                self._interests.setdefault(number, set()).add(interest)
        return number

    @contextlib.contextmanager
    def _rewatch(self, key: _K) -> Iterator[Callable[[bytes, bytes | None], None]]:
        """Yield a function that adds watches for a key; drop its earlier watches at the end."""
        wanted: set[tuple[int, _Interest[_K]]] = set()

        def watch(directory: bytes, name: bytes | None) -> None:
            interest = _Interest(key, directory, name)
            wanted.add((self._watch(interest), interest))

        yield watch
        with self._lock:
            for number, interests in list(self._interests.items()):
                interests -= {each for each in interests if each.key == key and (number, each) not in wanted}
                if not interests:
                    del self._interests[number]
                    self._queue.unwatch(number)


def _watch_if_readable(watch: Callable[[bytes, bytes | None], None], directory: Path) -> None:
    # One that is gone again has been reported as a change of its parent.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        watch(os.fsencode(directory), None)


def _nearest(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.is_dir())


def _children(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        yield from (Path(entry) for entry in entries if entry.is_dir())


def _is_under_mount(points: Iterable[bytes], interest: _Interest[_K]) -> bool:
    """Whether a mount at one of ``points`` decides what the directory or the entry shows."""
    directory, name = interest.directory, interest.name
    path = directory if name is None else os.path.join(directory, name)  # noqa: PTH118 - paths are bytes
    return any(
        _slashed(path).startswith(_slashed(point))
        or (name is None and _slashed(os.path.dirname(point)) == _slashed(directory))  # noqa: PTH120 - as above
        for point in points
    )


def _slashed(path: bytes) -> bytes:
    return path.rstrip(b"/") + b"/"
