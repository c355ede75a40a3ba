"""Reads the compiler's own lists of the files that a module was built from.

Beside each object file ``NAME.o`` the kernel's build leaves ``.NAME.o.cmd``: the command, and under
``deps_…`` every file that the compiler opened. stap leaves all that in its temporary directory, unless it
took the module from its own cache and there was nothing to build.

Source: scripts/basic/fixdep.c of the kernel; seen with Linux 6.1.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_LIST = re.compile(rb"^(?:deps|source)_\S+ := ?((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
_WILDCARD = re.compile(rb"\$\(wildcard [^)]*\)")


def parse_dependencies(text: bytes) -> tuple[str, ...]:
    """Return the files that a ``.cmd`` file lists; relative paths are relative to the build tree."""
    found = []
    for match in _LIST.finditer(text):
        listed = _WILDCARD.sub(b"", match[1].replace(b"\\\n", b" "))
        found += [os.fsdecode(path) for path in listed.split()]
    return tuple(found)


def has_build(directory: Path) -> bool:
    """Whether stap's temporary directory holds a whole build, and no module from its cache."""
    modules = [path for path in directory.glob("*.ko") if path.is_file()]
    return bool(modules) and all((directory / f".{path.stem}_src.o.cmd").is_file() for path in modules)


def read_dependencies(directory: Path, build_tree: Path) -> frozenset[str]:
    """Return the absolute paths of all files that a build in stap's temporary directory has read.

    They are as the compiler opened them, so ``..`` may follow a symbolic link. Files of the temporary
    directory itself are left out. May raise OSError.
    """
    own, tree = f"{directory}/", str(build_tree)
    paths = set()
    for record in directory.rglob(".*.o.cmd"):
        for named in parse_dependencies(record.read_bytes()):
            path = os.path.join(tree, named.removeprefix("./"))  # noqa: PTH118 - thousands of them
            if not path.startswith(own):
                paths.add(path)
    # stap compiles a user's header without a list of what that read, so the outcome stands for it.
    paths.update(str(path) for path in directory.rglob("typequery*.so"))
    return frozenset(paths)
