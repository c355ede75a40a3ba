"""Reads collections from the disk: directories that others write, within bounds."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path, PurePosixPath

import attrs

from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.scripts.collection import (
    META,
    SCRIPT,
    SIDECAR,
    TAPSETS,
    Collection,
    Unreadable,
    make_collection,
)
from stapsrv.scripts.script import Included, Script
from stapsrv.system import trees

_MAX_DEPTH = 16
_MAX_ENTRIES = 20_000
_MAX_FILE_BYTES = 1024 * 1024
_MAX_TOTAL_BYTES = 64 * 1024 * 1024


class _TooMuchError(ValueError):
    """A directory holds more than is read."""


def read_collection(directory: str) -> Collection:
    """Return the collection of a directory; it names what cannot be read. Blocks on files."""
    real = os.path.realpath(directory)
    try:
        files = {
            path: content
            for path, content in _read_tree(Path(real))[0].items()
            if path.endswith((SCRIPT, SIDECAR, META)) and TAPSETS not in PurePosixPath(path).parts[:-1]
        }
    except FileNotFoundError:
        return Collection(directory, fault="the directory does not exist")
    except OSError as exc:
        return Collection(directory, fault=f"the directory cannot be read: {exc.strerror}")
    except _TooMuchError as exc:
        return Collection(directory, fault=str(exc))
    found = make_collection(real, files)
    return attrs.evolve(
        found,
        directory=directory,
        scripts=tuple(attrs.evolve(_with_included(each), collection=directory) for each in found.scripts),
    )


def _with_included(script: Script) -> Script:
    stated = [os.fsdecode(value or b"") for name, value in script.parsed.options if name == "I"]
    if script.fault is not None or not stated:
        return script
    above = os.path.dirname(script.path)  # noqa: PTH120 - a text is wanted
    try:
        included = tuple(_included(os.path.realpath(os.path.join(above, each))) for each in stated)  # noqa: PTH118
    except OSError as exc:
        return attrs.evolve(script, fault=f"{script.name}: -I {exc.filename}: {exc.strerror}")
    except _TooMuchError as exc:
        return attrs.evolve(script, fault=f"{script.name}: -I: {exc}")
    return attrs.evolve(script, included=included)


def _included(path: str) -> Included:
    contents, directories = _read_tree(Path(path))
    root = b"tapset" + os.fsencode(path)
    files = []
    for name, content in contents.items():
        if isinstance(content, Unreadable):
            raise OSError(0, content.reason, f"{path}/{name}")
        files.append(RequestFile(root + b"/" + os.fsencode(name), content))
    return Included(path, tuple(files), tuple(root + b"/" + os.fsencode(name) for name in directories))


def _read_tree(directory: Path) -> tuple[dict[str, bytes | Unreadable], list[str]]:
    """Return the files below a directory, and the directories; links to elsewhere count for nothing.

    Raises:
        OSError: the directory cannot be read.
        _TooMuchError: it holds too much.
    """
    files: dict[str, bytes | Unreadable] = {}
    directories = []
    left = _MAX_TOTAL_BYTES
    with trees.open_directory(directory) as top:
        walk = trees.walk(top, max_depth=_MAX_DEPTH)
        with contextlib.closing(walk) as entries:
            for number, entry in enumerate(entries):
                if number >= _MAX_ENTRIES or left < 0:
                    raise _TooMuchError(f"it has more than {_MAX_ENTRIES} files, or 64 MiB")
                if stat.S_ISDIR(entry.status.st_mode):
                    directories.append(entry.path)
                elif stat.S_ISREG(entry.status.st_mode):
                    content = files[entry.path] = _read(entry)
                    left -= len(content) if isinstance(content, bytes) else 0
    return files, directories


def _read(entry: trees.Entry) -> bytes | Unreadable:
    try:
        return trees.read_file(entry.directory, entry.name, max_bytes=_MAX_FILE_BYTES)
    except OSError as exc:
        return Unreadable(f"it cannot be read: {exc.strerror}")
