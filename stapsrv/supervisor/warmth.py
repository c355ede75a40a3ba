"""Which releases have been compiled for, as one user's servers compile for them: kept over restarts.

stap keeps what it has found out about a kernel, so whoever has compiled for it once finds it warm. That
is remembered by a digest of all that it depends on; a file that is lost costs one compile for each release.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeGuard

import attrs

from stapsrv.compile.translator import StapProgram
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.supervisor.remembering import Memory, with_fact

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
        self._memory = Memory(file, _is_identity)
        self._cache = cache

    def knows(self, digest: str) -> bool:
        """Whether this has been compiled for, and stap's cache is still the same; reads files."""
        cache = _identity(self._cache)
        return cache is not None and self._memory.read().get(digest) == cache

    def remember(self, digest: str) -> None:
        """Keep that this has been compiled for; writes files. A disk that is full costs the memory alone."""
        cache = _identity(self._cache)
        if cache is not None:
            self._memory.write(with_fact(self._memory.read(), digest, cache))


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


def _is_identity(value: object) -> TypeGuard[str]:
    return isinstance(value, str)
