"""Reads the compiler's own lists of the files that a module was built from.

Beside each object file ``NAME.o`` the kernel's build leaves ``.NAME.o.cmd``: the command, and under
``deps_…`` every file that the compiler opened. stap leaves all that in its temporary directory.

Source: scripts/basic/fixdep.c of the kernel; seen with Linux 6.1.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

from stapsrv.compile.protocol.archive import MAX_COMPONENTS
from stapsrv.system import trees

_LIST = re.compile(rb"^(?:deps|source)_\S+ := ?((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
# No name in it has a blank, so that what never ends is not searched for its end from each beginning.
_WILDCARD = re.compile(rb"\$\(wildcard [^()\s]*\)")
_RECORD = ".o.cmd"

# What a compile left is foreign. A list of the kernel's build has about 100 KB and 1500 files; a script that
# asks for every tracepoint of a kernel takes some hundred lists of the same files.
_MAX_RECORD_BYTES = 4 << 20
_MAX_BYTES = 128 << 20
_MAX_PATHS_BYTES = 4 << 20


def parse_dependencies(text: bytes) -> tuple[str, ...]:
    """Return the files that a ``.cmd`` file lists; relative paths are relative to the build tree."""
    found = []
    for match in _LIST.finditer(text):
        listed = _WILDCARD.sub(b"", match[1].replace(b"\\\n", b" "))
        found += [os.fsdecode(path) for path in listed.split()]
    return tuple(found)


def read_dependencies(directory: Path, below: Path, build_tree: Path) -> frozenset[str]:
    """Return the absolute paths of all files that a build in stap's temporary directory has read.

    That is ``below`` a job's ``directory``; files in it are left out. The paths are as the compiler opened
    them, so ``..`` may follow a symbolic link. May raise OSError, also where no real build leaves so much.
    """
    top, tree = directory / below, str(build_tree)
    paths: set[str] = set()
    left, paths_left = _MAX_BYTES, _MAX_PATHS_BYTES
    with (
        trees.open_directory(directory, below) as answer,
        contextlib.closing(trees.walk(answer, max_depth=MAX_COMPONENTS)) as entries,
    ):
        for entry in entries:
            if entry.name.startswith("typequery") and entry.name.endswith(".so"):
                # stap compiles a user's header without a list of what that read: the outcome stands for it.
                paths.add(f"{top}/{entry.path}")
            if not entry.name.startswith(".") or not entry.name.endswith(_RECORD):
                continue
            record = trees.read_file(entry.directory, entry.name, max_bytes=min(left, _MAX_RECORD_BYTES))
            left -= len(record)
            for named in parse_dependencies(record):
                path = os.path.join(tree, named.removeprefix("./"))  # noqa: PTH118 - thousands of them
                if path not in paths and not path.startswith(f"{top}/"):
                    paths.add(path)
                    paths_left -= len(path)
            if paths_left < 0:
                raise OSError(errno.EFBIG, "too many files are listed")
    return frozenset(paths)
