"""Results on disk, by key: written whole, checked when read, bounded in size and age.

A directory of this user alone, shared by all that compile as this user: a file comes into being under its
name by a rename, whoever reads it meets the old one, the new one or none, and a file that is not what was
written is dropped. What was not used for the longest goes first: a file's time of access says when that
was, and is set here, since mounts may not keep it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from stapsrv.errors import ConfigError

RESULTS_DIRECTORY = "server-results"
"""In a user's ``$SYSTEMTAP_DIR``: beside stap's own cache, and out of the reach of what compiles."""

_MAGIC = b"stapsrv result 1\n"
_SUM_BYTES = hashlib.sha256().digest_size
_ENTRY = ".result"
_UNFINISHED = ".new"
NOTE = "note-"
"""Begins the names of entries that are no results: these do not age, and are not counted or cleared."""
_UNFINISHED_S = 3600.0
"""After so long nobody writes it any more."""
_UNSEEN = 0.1
"""Of the largest size: after so much written by one process it sees what others have written."""
_ROOM = 0.9
"""What is left of the largest size after things had to go, lest they have to go each time."""


@attrs.frozen
class StoreStatistics:
    """What a directory holds."""

    entries: int
    stored_bytes: int


@attrs.frozen
class Verified:
    """What came of looking at every file."""

    sound: int
    damaged: int


class DamagedError(Exception):
    """A file is not what was written; never leaves this module."""


class DiskStore:
    """A directory of results.

    Args:
        directory: made with the first entry if it is missing, mode 0700.
        max_bytes: of all files together.
        max_age_s: seconds after which a file counts no more.

    Raises:
        ConfigError: it is another user's, or others could look into it.
    """

    def __init__(self, directory: Path, *, max_bytes: int, max_age_s: float) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._bytes: int | None = None
        """When they were counted last."""
        self._unseen = 0
        """Written since then, by this process."""
        _check(directory)

    def read(self, name: str) -> bytes | None:
        """Return what was written under a name; None if there is nothing, or it is too old.

        Raises:
            DamagedError: there was something else, and is no more.
        """
        path = self._path(name)
        try:
            with path.open("rb") as stream:
                age_s = time.time() - os.fstat(stream.fileno()).st_mtime
                if age_s > self._max_age_s and not name.startswith(NOTE):
                    path.unlink(missing_ok=True)
                    return None
                text = stream.read()
        except OSError:
            return None
        try:
            body = _open(text, name)
        except DamagedError:
            path.unlink(missing_ok=True)
            raise
        self.touch(name)
        return body

    def has(self, name: str) -> bool:
        """Whether there is an entry of this name that is not too old, sound or not."""
        try:
            age_s = time.time() - self._path(name).stat().st_mtime
        except OSError:
            return False
        return age_s <= self._max_age_s or name.startswith(NOTE)

    def touch(self, name: str) -> None:
        """Note that an entry is in use."""
        path = self._path(name)
        with contextlib.suppress(OSError):
            os.utime(path, (time.time(), path.stat().st_mtime))

    def write(self, name: str, body: bytes) -> int:
        """Write under a name, in place of what was there; return how many others had to go.

        Raises:
            OSError: it could not be written; what was there is there still.
        """
        path = self._path(name)
        text = _seal(body, name)
        if len(text) > self._max_bytes:
            return 0
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = self.directory / f"{secrets.token_hex(8)}{_UNFINISHED}"
        try:
            fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as stream:
                stream.write(text)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        self._unseen += len(text)
        if self._bytes is None or self._unseen > self._max_bytes * _UNSEEN:
            self._bytes, self._unseen = sum(status.st_size for _path, status in self._files()), 0
        return self.evict() if self._bytes + self._unseen > self._max_bytes else 0

    def evict(self) -> int:
        """Remove what is too old, and what was used least lately until there is room; return how many.

        Notes go last.
        """
        now = time.time()
        # Without its notes, stap's own cache would be taken for as new as what is known now.
        found = sorted(self._files(), key=lambda file: (file[0].name.startswith(NOTE), file[1].st_atime))
        total = sum(status.st_size for _path, status in found)
        limit = self._max_bytes * _ROOM if total > self._max_bytes else self._max_bytes
        gone = 0
        for path, status in found:
            unfinished = path.name.endswith(_UNFINISHED)
            max_age_s = _UNFINISHED_S if unfinished else self._max_age_s
            too_old = now - status.st_mtime > max_age_s and not path.name.startswith(NOTE)
            if too_old or (total > limit and not unfinished):
                path.unlink(missing_ok=True)
                total -= status.st_size
                gone += 1
        self._bytes, self._unseen = total, 0
        return gone

    def clear(self) -> int:
        """Remove all results; return how many there were."""
        gone = 0
        for path, _status in list(self._files()):
            if path.name.startswith(NOTE):
                continue
            path.unlink(missing_ok=True)
            gone += path.name.endswith(_ENTRY)
        self._bytes = None
        return gone

    def verify(self) -> Verified:
        """Look at every entry, and remove those that are damaged."""
        sound = damaged = 0
        for path, _status in list(self._files()):
            if not path.name.endswith(_ENTRY):
                continue
            try:
                _open(path.read_bytes(), path.name.removesuffix(_ENTRY))
                sound += 1
            except FileNotFoundError:
                continue
            except (DamagedError, OSError):
                path.unlink(missing_ok=True)
                damaged += 1
        return Verified(sound, damaged)

    def statistics(self) -> StoreStatistics:
        """Count what there is."""
        sizes = [
            status.st_size
            for path, status in self._files()
            if path.name.endswith(_ENTRY) and not path.name.startswith(NOTE)
        ]
        return StoreStatistics(len(sizes), sum(sizes))

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}{_ENTRY}"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                if not entry.name.endswith((_ENTRY, _UNFINISHED)):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield Path(entry.path), status


def encode_body(head: object, parts: list[bytes]) -> bytes:
    """Put a description in JSON and parts of any bytes together; :func:`decode_body` takes them apart."""
    described = json.dumps({"head": head, "sizes": [len(part) for part in parts]}).encode()
    return b"%d\n" % len(described) + described + b"".join(parts)


def decode_body(body: bytes) -> tuple[object, list[bytes]]:
    """Take apart what :func:`encode_body` put together.

    Raises:
        ValueError, KeyError, TypeError: something else did.
    """
    size, _newline, rest = body.partition(b"\n")
    described = json.loads(rest[: int(size)])
    offset = int(size)
    parts = []
    for length in described["sizes"]:
        parts.append(rest[offset : offset + length])
        offset += length
    if offset != len(rest):
        raise ValueError("the parts do not fill the whole")
    return described["head"], parts


def _seal(body: bytes, name: str) -> bytes:
    return _MAGIC + _sum(body, name) + body


def _open(text: bytes, name: str) -> bytes:
    start = len(_MAGIC) + _SUM_BYTES
    body = text[start:]
    if text[:start] != _MAGIC + _sum(body, name):
        raise DamagedError
    return body


def _sum(body: bytes, name: str) -> bytes:
    """Return a checksum over an entry and its name: one under another's name is no good either."""
    sha = hashlib.sha256(name.encode())
    sha.update(body)
    return sha.digest()


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
