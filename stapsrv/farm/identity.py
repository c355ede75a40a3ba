"""The identity of a toolchain for a release: equal on two hosts only if all that modules are built with is.

The fingerprints of the result cache are of one host: they hold inodes and times. This is a digest of
contents: the build tree with the kernel's sources, tapsets, runtime, stap, the compiler; and of the
environment that stap runs in. What is too large to be read (debugging information) counts by its size.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from stapsrv.compile.cache.inputs import IGNORED_VARIABLES, kernel_sources
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError

_VERSION = b"1"
_MAX_FILES = 400_000
_PROGRAMS = ("gcc", "as", "ld", "make", "objcopy", "nm")
_COMPILERS = ("/usr/lib/gcc", "/usr/libexec/gcc")
_COMPILER_PARTS = frozenset({"cc1", "collect2", "lto1"})
# Of a release; stap reads them where they exist.
_LARGE = (
    *("/usr/lib/debug/lib/modules/{}/vmlinux", "/usr/lib/debug/boot/vmlinux-{}", "/boot/vmlinux-{}"),
    *("/lib/modules/{}/vmlinux", "/boot/System.map-{}", "/lib/modules/{}/modules.dep"),
)
# Of the service and its host, beside what the result cache ignores: equal compiles may differ in them.
_PREFIXES = ("STAPSRV_", "LISTEN_", "NOTIFY_", "WATCHDOG_", "CREDENTIALS_", "SYSTEMTAP_DIR", "DASK_")


def toolchain_identity(
    stap: StapProgram,
    release: ServedRelease,
    settings: ServerSettings,
    environ: Mapping[str, str],
    *,
    systemtap: Path,
    contained: str,
) -> str:
    """Return the identity as 64 hexadecimal digits; reads all files, which takes a second or two.

    ``systemtap`` is the directory with stap's ``rc`` file, ``contained`` says what compiles see of the host.

    Raises:
        OSError: a file cannot be read.
        ConfigError: there are too many.
    """
    sha = hashlib.sha256()
    ignored = set(IGNORED_VARIABLES.split())
    counted = sorted(
        f"{name}={value}"
        for name, value in environ.items()
        if name not in ignored and not name.startswith(_PREFIXES)
    )
    for part in (_VERSION, release.name.encode(), release.arch.encode(), stap.version.encode()):
        _add(sha, part)
    for text in (contained, *counted):
        _add(sha, os.fsencode(text))
    program = Path(os.path.realpath(stap.path))
    data = program.parent.parent / "share" / "systemtap"
    runtime = settings.runtime or environ.get("SYSTEMTAP_RUNTIME") or data / "runtime"
    tapsets = (environ.get("SYSTEMTAP_TAPSET") or data / "tapset", *settings.include)
    trees = (runtime, *tapsets, release.build_tree, *kernel_sources(release.build_tree))
    for tree in trees:
        _add(sha, b"tree")
        _add_tree(sha, Path(tree))
    for file in (program, systemtap / "rc", *_compiler(environ)):
        _add(sha, b"file")
        _add_file(sha, file)
    for path in _LARGE:
        _add(sha, str(_size(path.format(release.name))).encode())
    return sha.hexdigest()


def _compiler(environ: Mapping[str, str]) -> Iterator[Path]:
    for name in _PROGRAMS:
        found = shutil.which(name, path=environ.get("PATH"))
        if found is not None:
            yield Path(os.path.realpath(found))
    for top in _COMPILERS:
        for directory, _, names in sorted(os.walk(top)):
            yield from (Path(directory, name) for name in sorted(_COMPILER_PARTS.intersection(names)))


def _add_tree(sha: hashlib._Hash, top: Path) -> None:
    """Add all files below a directory by their relative paths, those that links lead to as well."""
    left = _MAX_FILES
    seen: set[tuple[int, int]] = set()
    for directory, below, names in os.walk(top, followlinks=True):
        status = os.stat(directory)  # noqa: PTH116 - called for each directory of a kernel
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below.sort()
        left -= len(names)
        if left < 0:
            raise ConfigError(f"has more than {_MAX_FILES} files", where=str(top))
        _add_all(sha, top, (Path(directory, name) for name in sorted(names)))


def _add_all(sha: hashlib._Hash, top: Path, files: Iterable[Path]) -> None:
    for file in files:
        _add(sha, os.fsencode(file.relative_to(top)))
        _add_file(sha, file)


def _add_file(sha: hashlib._Hash, path: Path) -> None:
    try:
        # A pipe that somebody left in a tree would be waited for.
        if not path.is_file():
            _add(sha, b"none")
            return
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").digest()
    except (FileNotFoundError, PermissionError):
        # stap cannot read it either.
        content = b"unreadable"
    _add(sha, content)


def _add(sha: hashlib._Hash, part: bytes) -> None:
    sha.update(len(part).to_bytes(8, "big"))
    sha.update(part)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a name that was put together
    except OSError:
        return -1
