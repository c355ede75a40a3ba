"""Which releases have been compiled for, as one user's servers compile for them: kept over restarts.

stap keeps what it has found out about a kernel, so whoever has compiled for it once finds it warm. That
is remembered by a digest of all that it depends on; a file that is lost costs one compile for each release.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from stapsrv.compile.translator import StapProgram
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings

_MOST = 500
"""Digests that are remembered; the oldest is forgotten first."""
_TREE_FILES = (
    *("Makefile", ".config", "Module.symvers", "include/config/kernel.release"),
    *("include/generated/autoconf.h", "include/generated/utsrelease.h", "scripts/mod/modpost"),
)
"""What changes when a kernel's build tree is configured, built or installed anew."""
_DEFAULT_RUNTIME = Path("/usr/share/systemtap/runtime")


@attrs.frozen
class Subject:
    """A release, and how it is compiled for: what one of two equal ones has shown holds for the other."""

    release: ServedRelease
    arch: str | None
    build: tuple[str, ...]
    define: tuple[str, ...]
    include: tuple[str, ...]
    runtime: str | None

    @classmethod
    def of(cls, settings: ServerSettings, release: ServedRelease) -> Subject:
        """Return how a server with such settings compiles for a release."""
        return cls(
            release, settings.arch, settings.build, settings.define, settings.include, settings.runtime
        )

    @property
    def places(self) -> tuple[Path, ...]:
        """The directories whose contents decide whether it can be compiled for."""
        runtime = _DEFAULT_RUNTIME if self.runtime is None else Path(self.runtime)
        return (self.release.build_tree, runtime, *map(Path, self.include))


class WarmMemory:
    """What has been compiled for.

    Args:
        file: where that is kept; made when there is something to keep.
        cache: stap's own; when that is gone, nothing is warm any more.
    """

    def __init__(self, file: Path, cache: Path) -> None:
        self._file = file
        self._cache = cache

    def knows(self, digest: str) -> bool:
        """Whether this has been compiled for, and stap's cache is still the same; reads files."""
        cache = _identity(self._cache)
        return cache is not None and _read(self._file).get(digest) == cache

    def remember(self, digest: str) -> None:
        """Keep that this has been compiled for; writes files. A disk that is full costs the memory alone."""
        cache = _identity(self._cache)
        if cache is None:
            return
        known = _read(self._file)
        known.pop(digest, None)
        known[digest] = cache
        while len(known) > _MOST:
            del known[next(iter(known))]
        with contextlib.suppress(OSError):
            _write(self._file, known)


def digest_of(subject: Subject, stap: StapProgram) -> str:
    """Return what changes when another compile for the subject may come out differently; reads files."""
    sha = hashlib.sha256()
    for part in (stap.version, _stamp(stap.path), repr(subject), *_stamps(subject)):
        sha.update(f"{part}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()[:32]


def _stamps(subject: Subject) -> Iterator[str]:
    tree, *others = subject.places
    yield os.path.realpath(tree)
    yield from map(_stamp, (tree / name for name in _TREE_FILES))
    for place in others:
        yield from map(_stamp, _files(place))


def _files(place: Path) -> Iterable[Path]:
    """Return the files of a directory of SystemTap's own kind: some hundreds."""
    return (Path(parent, name) for parent, _, names in sorted(os.walk(place)) for name in sorted(names))


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{path} -"
    return f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _identity(directory: Path) -> str | None:
    """Return what tells a directory from another one that is made in its place; None if it is missing."""
    try:
        status = directory.stat()
    except OSError:
        return None
    return f"{status.st_dev}:{status.st_ino}"


def _read(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {digest: cache for digest, cache in found.items() if isinstance(cache, str)}


def _write(file: Path, known: dict[str, str]) -> None:
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as stream:
            json.dump(known, stream)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
